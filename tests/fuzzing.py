"""How many inputs the fuzz tests try."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("FORESTGAPS_FUZZ_EXAMPLES")


def fuzzed(few: int) -> settings:
    """So many inputs, the same in every run; or FORESTGAPS_FUZZ_EXAMPLES, new ones in every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=int(EXAMPLES or few),
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=checks,
    )
