"""A run as one HTML page that needs nothing else: no network, no script, no file beside it."""

from forestgaps_jax.report.page import write_report
from forestgaps_jax.report.reliability import Reliability, reliability

__all__ = ["Reliability", "reliability", "write_report"]
