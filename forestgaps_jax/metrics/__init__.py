"""Metrics of a binary segmentation from exact counts, over all and per height threshold."""

from forestgaps_jax.metrics.classification import summarize_counts, summarize_rows
from forestgaps_jax.metrics.confusion import (
    CELLS,
    ConfusionCounts,
    confusion_matrix,
    confusion_metrics,
    threshold_index,
)
from forestgaps_jax.metrics.plain import to_json

__all__ = [
    "CELLS",
    "ConfusionCounts",
    "confusion_matrix",
    "confusion_metrics",
    "summarize_counts",
    "summarize_rows",
    "threshold_index",
    "to_json",
]
