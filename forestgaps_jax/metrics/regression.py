"""Errors of predicted canopy heights, fed batch by batch by hand."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from forestgaps_jax.metrics.confusion import threshold_index
from forestgaps_jax.metrics.pixels import as_heights, check_thresholds, same_shape, unlisted
from forestgaps_jax.metrics.regression_sums import RegressionSums, regression_metrics


class RegressionMetrics:
    """Errors of predicted canopy heights, fed batch by batch by hand; over all and per height threshold.

    Sums stay on the device: an update waits for nothing, `compute` fetches once.

    Args:
        thresholds: heights to tell apart, metres; None for none.

    >>> metrics = RegressionMetrics()
    >>> metrics.update(np.array([[[1.0, 5.0]]]), np.array([[[2.0, 4.0]]]))
    >>> metrics.compute()["rmse"]
    1.0

    Raises:
        ValueError: no height, or one that is not above 0 or is there twice.
    """

    def __init__(self, thresholds: Sequence[float] | None = None):
        self.thresholds = () if thresholds is None else check_thresholds(thresholds)
        self.reset()

    def reset(self) -> None:
        """Forget all that was added."""
        self._sums = RegressionSums.zeros(len(self.thresholds) + 1)

    def update(self, predictions: Any, targets: Any, valid: Any = None, threshold_value: Any = None) -> None:
        """Add a batch.

        Args:
            predictions: canopy heights, metres: ``[batch, height, width, 1]`` or ``[batch, height, width]``,
                of NumPy, jax, or what NumPy can read, such as CPU tensors of PyTorch.
            targets: true canopy heights, metres.
            valid: pixels that count; None for all.
            threshold_value: height threshold, within 1 mm of a listed one: of all, or one a sample; only
                where there is a list.

        Raises:
            ValueError: shapes that do not fit, a threshold that is missing, not listed, or not asked for.
            TypeError: an array without numbers.
        """
        images = same_shape(predictions=predictions, targets=targets, valid=valid)
        if threshold_value is not None and not self.thresholds:
            raise ValueError("threshold_value is given, but no list: make RegressionMetrics(thresholds)")
        heights = None
        if self.thresholds:
            heights = as_heights(threshold_value, len(images[0]), self.thresholds)
        # Put there by name: what moves to the device unasked is what a transfer guard looks for.
        arrays = [jax.device_put(x) if isinstance(x, np.ndarray) else x for x in (*images, heights)]
        self._sums = _add(self._sums, *arrays, thresholds=self.thresholds)

    def compute(self) -> dict[str, Any]:
        """`regression_metrics` of all pixels; with a list also ``"threshold_metrics"``, by height.

        Raises:
            ValueError: heights in arrays of jax were not listed; `reset` to start again.
        """
        rows = jax.device_get(self._sums).to_numpy()
        if not self.thresholds:
            return regression_metrics(rows)
        if rows[-1, 0]:
            raise ValueError(unlisted(self.thresholds))
        per_threshold = {
            height: regression_metrics(row)
            for height, row in zip(self.thresholds, rows, strict=False)
            if row[0]
        }
        return {**regression_metrics(rows), "threshold_metrics": per_threshold}


@partial(jax.jit, static_argnames="thresholds")
def _add(
    sums: RegressionSums,
    predictions: Array,
    targets: Array,
    valid: Array | None,
    heights: Array | None,
    *,
    thresholds: tuple[float, ...],
) -> RegressionSums:
    predictions, targets = (x.astype(jnp.float32) for x in (predictions, targets))
    group = None if heights is None else threshold_index(heights, thresholds)
    return sums.update(predictions, targets, group=group, valid=None if valid is None else valid != 0)
