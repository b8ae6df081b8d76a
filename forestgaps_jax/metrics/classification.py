"""Metrics per height threshold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

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
    return summarize_rows(counts.to_numpy(), thresholds, np.asarray(counts.samples), loss)


def summarize_rows(
    rows: Int[np.ndarray, "rows 4"],
    thresholds: Sequence[float],
    samples: Int[np.ndarray, " rows"],
    loss: float = math.nan,
) -> dict[str, Any]:
    """`summarize_counts` of counts that are on the host."""
    per_threshold = {}
    for threshold, row, n_samples in zip(thresholds, rows, samples, strict=False):
        if n_samples:
            metrics = confusion_metrics(row)
            metrics |= {"n_samples": int(n_samples), "gap_ratio": metrics["gap_proportion"]}
            per_threshold[float(threshold)] = metrics
    return {
        "loss": loss,
        **confusion_metrics(rows),
        "confusion_matrix": confusion_matrix(rows),
        "threshold_metrics": per_threshold,
    }
