"""Metrics of a segmentation, fed batch by batch by hand."""

from typing import Any

import jax
import numpy as np

from forestgaps_jax.metrics import tally
from forestgaps_jax.metrics.confusion import confusion_matrix, confusion_metrics
from forestgaps_jax.types import SAME_THRESHOLD


class SegmentationMetrics:
    """Every metric of gap against no gap, from exact counts of pixels.

    Counts stay on the device: an update waits for nothing, `compute` fetches once. So values out of range in
    arrays of jax are refused there; in all other arrays at once.

    Args:
        threshold: probability above which gap is predicted.
        from_logits: predictions are logits; ``threshold`` stays a probability.

    >>> metrics = SegmentationMetrics()
    >>> metrics.update(np.array([[[0.9, 0.8], [0.3, 0.1]]]), np.array([[[1, 0], [1, 0]]]))
    >>> metrics.compute()["precision"]
    0.5
    >>> metrics.compute_confusion_matrix()["fn"]
    1

    Raises:
        ValueError: ``threshold`` is no probability.
    """

    def __init__(self, threshold: float = 0.5, from_logits: bool = False):
        tally.check_cut(threshold)
        self.threshold = threshold
        self.from_logits = from_logits
        self.reset()

    def reset(self) -> None:
        """Forget all that was counted."""
        self._whole = tally.Tally.zeros()
        self._by_height: dict[float, tally.Tally] = {}

    def update(self, predictions: Any, targets: Any, valid: Any = None) -> None:
        """Count a batch.

        Args:
            predictions: probabilities (or logits, see ``from_logits``), or booleans, True for gap:
                ``[batch, height, width, 1]`` or ``[batch, height, width]``, of NumPy, jax, or what NumPy can
                read, such as CPU tensors of PyTorch.
            targets: 1 where there is gap, else 0.
            valid: pixels that count; None for all.

        Raises:
            ValueError: shapes that do not fit, or values out of range.
            TypeError: an array without numbers.
        """
        self._whole = self._add(self._whole, predictions, targets, valid)

    def update_by_threshold(
        self, predictions: Any, targets: Any, threshold_value: Any, valid: Any = None
    ) -> None:
        """Count a batch for one height threshold (metres) only, not in the whole.

        For thresholds that differ within a batch there is `ThresholdMetrics`.

        Raises:
            ValueError: as `update`, or the threshold is not one height.
        """
        if np.ndim(threshold_value) or not 0 < float(threshold_value) < np.inf:
            raise ValueError(
                f"threshold_value = {threshold_value}: must be one height above 0, metres; "
                "ThresholdMetrics takes one a sample"
            )
        height = float(threshold_value)
        height = next((known for known in self._by_height if abs(known - height) < SAME_THRESHOLD), height)
        before = self._by_height.get(height) or tally.Tally.zeros()
        self._by_height[height] = self._add(before, predictions, targets, valid)

    def compute(self) -> dict[str, Any]:
        """The metrics of all pixels given to `update`, and those of `update_by_threshold` by height.

        Returns:
            The names of `confusion_metrics` as floats, NaN where undefined, and ``"threshold_metrics"``:
            ``{height: metrics}``.

        Raises:
            ValueError: arrays of jax held values out of range; `reset` to start again.
        """
        whole, by_height = self._fetch()
        per_threshold = {height: confusion_metrics(by_height[height].counts) for height in sorted(by_height)}
        return {**confusion_metrics(whole.counts), "threshold_metrics": per_threshold}

    def compute_confusion_matrix(self) -> dict[str, int | float]:
        """Exact counts of all pixels given to `update`, and their rates, as `confusion_matrix` names them.

        Raises:
            ValueError: as `compute`.
        """
        return confusion_matrix(self._fetch()[0].counts)

    def _add(self, before: tally.Tally, predictions: Any, targets: Any, valid: Any) -> tally.Tally:
        cut, from_logits = self.threshold, self.from_logits
        return tally.add(before, predictions, targets, valid, cut=cut, from_logits=from_logits)

    def _fetch(self) -> tuple[tally.Tally, dict[float, tally.Tally]]:
        whole, by_height = jax.device_get((self._whole, self._by_height))
        for each in (whole, *by_height.values()):
            tally.check(each, self.from_logits)
        return whole, by_height


def iou_metric(predictions: Any, targets: Any, threshold: float = 0.5, valid: Any = None) -> float:
    """Intersection over union of the gaps in one batch; NaN where none is predicted and there is none.

    >>> iou_metric(np.array([[[0.9, 0.8, 0.3]]]), np.array([[[1, 0, 1]]]))
    0.3333333333333333

    Args:
        predictions: as `SegmentationMetrics.update` takes them.
        targets: 1 where there is gap, else 0.
        threshold: probability above which gap is predicted.
        valid: pixels that count; None for all.

    Raises:
        ValueError: shapes that do not fit, or values out of range.
    """
    metrics = SegmentationMetrics(threshold)
    metrics.update(predictions, targets, valid)
    return metrics.compute()["iou"]
