"""Metrics per height threshold."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Int

from forestgaps_jax.metrics import tally
from forestgaps_jax.metrics.confusion import ConfusionCounts, confusion_matrix, confusion_metrics
from forestgaps_jax.metrics.pixels import check_thresholds

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-not-found]  # optional


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


class ThresholdMetrics:
    """Every metric per height threshold, fed batch by batch by hand.

    Counts stay on the device: an update waits for nothing, `compute` fetches once. So what is wrong in
    arrays of jax (values out of range, heights that are not listed) is refused there, the rest at once.

    Args:
        thresholds: the heights to tell apart, metres.
        from_logits: predictions are logits.

    >>> metrics = ThresholdMetrics([5, 10])
    >>> metrics.update(np.array([[[0.9, 0.8, 0.1]]]), np.array([[[1, 0, 0]]]), 0.5, threshold_value=10)
    >>> {height: row["precision"] for height, row in metrics.compute().items()}
    {10.0: 0.5}

    Raises:
        ValueError: no height, or one that is not above 0 or is there twice.
    """

    def __init__(self, thresholds: Sequence[float], from_logits: bool = False):
        self.thresholds = check_thresholds(thresholds)
        self.from_logits = from_logits
        self.reset()

    def reset(self) -> None:
        """Forget all that was counted."""
        self._tally = tally.Tally.zeros(len(self.thresholds) + 1)

    def update(
        self,
        predictions: Any,
        targets: Any,
        threshold: float = 0.5,
        threshold_value: Any = None,
        valid: Any = None,
    ) -> None:
        """Count a batch.

        Args:
            predictions: probabilities (or logits, see ``from_logits``), or booleans, True for gap:
                ``[batch, height, width, 1]`` or ``[batch, height, width]``, of NumPy, jax, or what NumPy can
                read, such as CPU tensors of PyTorch.
            targets: 1 where there is gap, else 0.
            threshold: probability above which gap is predicted.
            threshold_value: height threshold, metres, within 1 mm of a listed one: of all, or one a sample.
            valid: pixels that count; None for all.

        Raises:
            ValueError: shapes that do not fit, values out of range, a height that is not listed.
            TypeError: an array without numbers.
        """
        self._tally = tally.add(
            self._tally,
            predictions,
            targets,
            valid,
            cut=threshold,
            from_logits=self.from_logits,
            threshold_value=threshold_value,
            thresholds=self.thresholds,
        )

    def compute(self) -> dict[float, dict[str, float]]:
        """``{height: metrics}`` of the thresholds that had samples.

        Returns:
            The names of `confusion_metrics`, NaN where undefined, with ``"n_samples"`` and ``"gap_ratio"``.

        Raises:
            ValueError: arrays of jax held what cannot be counted; `reset` to start again.
        """
        return summarize_counts(self._fetch(), self.thresholds)["threshold_metrics"]

    def compute_confusion_matrix(self) -> dict[float, dict[str, int | float]]:
        """``{height: exact counts}`` of the thresholds that had samples, as `confusion_matrix` names them.

        Raises:
            ValueError: as `compute`.
        """
        counts = self._fetch()
        rows = zip(self.thresholds, counts.to_numpy(), counts.samples, strict=False)
        return {height: confusion_matrix(row) for height, row, samples in rows if samples}

    def to_dataframe(self) -> "DataFrame":
        """`compute` as a table of pandas: a row a threshold, rising, its height in the column ``threshold``.

        Raises:
            ImportError: pandas is not there.
        """
        try:
            import pandas  # type: ignore[import-not-found]  # optional
        except ImportError:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from None
        return pandas.DataFrame([{"threshold": t, **row} for t, row in sorted(self.compute().items())])

    def _fetch(self) -> ConfusionCounts:
        fetched = jax.device_get(self._tally)
        tally.check(fetched, self.from_logits, self.thresholds)
        return fetched.counts
