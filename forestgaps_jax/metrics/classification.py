"""Metrics per height threshold."""

import math
from collections.abc import Sequence
from typing import Any

from forestgaps_jax.metrics.confusion import ConfusionCounts, confusion_matrix, confusion_metrics


def summarize_counts(
    counts: ConfusionCounts, thresholds: Sequence[float], loss: float = math.nan
) -> dict[str, Any]:
    """All metrics of an evaluation, as plain Python values; waits for the device.

    Args:
        counts: one row a threshold, then one for thresholds that are not listed.
        thresholds: the listed heights, metres.
        loss: mean loss of the pixels counted.

    Returns:
        The metrics of all pixels, with ``"confusion_matrix"`` (exact integers) and ``"threshold_metrics"``
        ``{threshold: metrics}`` of those thresholds that had samples.
    """
    rows, samples = counts.to_numpy(), [int(n) for n in counts.samples]
    per_threshold = {}
    for threshold, row, n_samples in zip(thresholds, rows, samples, strict=False):
        if n_samples:
            metrics = confusion_metrics(row)
            metrics |= {"n_samples": n_samples, "gap_ratio": metrics["gap_proportion"]}
            per_threshold[float(threshold)] = metrics
    return {
        "loss": loss,
        **confusion_metrics(rows),
        "confusion_matrix": confusion_matrix(rows),
        "threshold_metrics": per_threshold,
    }
