"""Losses in which some heights count more than others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from forestgaps_jax.loss.base import Loss
from forestgaps_jax.loss.reduction import weight_samples

Threshold = float | Num[Array, "..."] | Num[np.ndarray, "..."]
"""Height threshold (m): one for all samples, or ``[batch]``."""


def weight_table(
    thresholds: Sequence[float], weights: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Thresholds in rising order and their weights.

    Raises:
        ValueError: not one weight for each threshold, a threshold twice, or a weight below 0 or not finite.
    """
    heights, factors = np.asarray(thresholds, np.float64), np.asarray(weights, np.float64)
    given = f"thresholds {tuple(thresholds)}, weights {tuple(weights)}"
    if heights.shape != factors.shape or not heights.size or np.unique(heights).size < heights.size:
        raise ValueError(f"{given}: must be one weight for each threshold, and each threshold once")
    if not (np.isfinite(heights).all() and np.isfinite(factors).all() and np.all(factors >= 0)):
        raise ValueError(f"{given}: must be finite, weights 0 or more")
    order = np.argsort(heights)
    return tuple(heights[order].tolist()), tuple(factors[order].tolist())


@dataclass(frozen=True)
class _Weighted:
    loss: Loss
    thresholds: Sequence[float]
    weights: Sequence[float]

    arguments: ClassVar[tuple[str, ...]] = ("loss", "thresholds", "weights")

    def __post_init__(self) -> None:
        thresholds, weights = weight_table(self.thresholds, self.weights)
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "weights", weights)

    @property
    def table(self) -> dict[float, float]:
        """The weight at each threshold."""
        return dict(zip(self.thresholds, self.weights, strict=True))

    def _weight_at(self, height: Threshold) -> Float[Array, "..."]:
        nodes, weights = (jnp.asarray(x, jnp.float32) for x in (self.thresholds, self.weights))
        return jnp.interp(jnp.asarray(height, jnp.float32), nodes, weights)


@dataclass(frozen=True)
class ThresholdWeightedLoss(_Weighted):
    """A gap loss in which each sample weighs by its height threshold.

    Between the listed thresholds weights are interpolated linearly, outside the outermost hold. They
    multiply each sample's terms inside the loss, not the mean of the batch. A loss that learns, such as
    `AdaptiveLoss`, goes on to.

    Attributes:
        loss: the gap loss.
        thresholds: heights, metres; kept as a tuple in rising order.
        weights: the weight at each; kept as a tuple.

    Raises:
        ValueError: weights that do not fit the thresholds, or a loss that has threshold weights already.

    >>> from forestgaps_jax.loss.focal import BCELoss
    >>> loss = ThresholdWeightedLoss(BCELoss(), thresholds=(5.0, 15.0), weights=(1.5, 0.5))
    >>> loss.sample_weight(jnp.asarray([5.0, 10.0, 30.0])).tolist()
    [1.5, 1.0, 0.5]
    >>> loss(jnp.zeros((1, 4)), jnp.ones((1, 4)), threshold=5.0).round(4).item()  # 1.5 ln 2
    1.03970003...
    """

    needs_threshold: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.loss, "needs_threshold", False):
            raise ValueError(f"{self.loss} has threshold weights already: give them once")

    @property
    def target(self) -> str:
        """What the loss compares with."""
        return getattr(self.loss, "target", "mask")

    @property
    def learns(self) -> bool:
        """Whether the loss has parameters of its own."""
        return getattr(self.loss, "learns", False)

    def init(self) -> Any:
        """First parameters of a loss that learns.

        Raises:
            TypeError: the loss learns nothing.
        """
        init = getattr(self.loss, "init", None)
        if init is None:
            raise TypeError(f"{self.loss} learns nothing: it has no parameters")
        return init()

    def sample_weight(self, threshold: Threshold) -> Float[Array, "..."]:
        """The weight of each threshold (m), of the same shape."""
        return self._weight_at(threshold)

    def __call__(
        self,
        logits: Float[Array, "batch ..."],
        targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
        *,
        threshold: Threshold,
        valid: Bool[Array, "batch ..."] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
        params: Any = None,
    ) -> Float[Array, ""]:
        """The loss of a batch.

        Args:
            logits: any shape with the batch first.
            targets: 1 for gap, 0 for not; of the same shape.
            threshold: height threshold (m) of each sample, or one for all.
            valid: pixels that count; None for all.
            sample_weight: further factor on each sample's terms.
            params: what the loss learns, from `init`; None where it learns nothing.

        Raises:
            ValueError: shapes differ.
            TypeError: ``params`` for a loss that learns nothing.
        """
        samples = logits.shape[:1]
        if jnp.shape(threshold) not in ((), samples):
            raise ValueError(f"threshold has shape {jnp.shape(threshold)}: must be {samples}, or one for all")
        weight = jnp.broadcast_to(self.sample_weight(threshold), samples)
        learnt = {} if params is None else {"params": params}
        return self.loss(
            logits, targets, valid=valid, sample_weight=weight_samples(weight, sample_weight), **learnt
        )


@dataclass(frozen=True)
class ThresholdWeightedRegressionLoss(_Weighted):
    """A regression loss in which each pixel weighs by its own true canopy height.

    The listed thresholds are the nodes between which weights are interpolated linearly; outside the
    outermost hold. The weighted sum is divided by the number of valid pixels.

    Attributes:
        loss: the regression loss; it takes ``pixel_weight``.
        thresholds: heights, metres; kept as a tuple in rising order.
        weights: the weight at each; kept as a tuple.

    Raises:
        ValueError: weights that do not fit the thresholds.

    >>> from forestgaps_jax.loss.regression import MAELoss
    >>> loss = ThresholdWeightedRegressionLoss(MAELoss(), thresholds=(5.0, 15.0), weights=(1.5, 0.5))
    >>> loss(jnp.asarray([[4.0, 21.0]]), jnp.asarray([[2.0, 20.0]])).item()  # (1.5 * 2 + 0.5 * 1) / 2
    1.75
    """

    target: ClassVar[str] = "chm"
    learns: ClassVar[bool] = False
    needs_threshold: ClassVar[bool] = False

    def pixel_weight(self, heights: Float[Array, "..."]) -> Float[Array, "..."]:
        """The weight at each canopy height (m), of the same shape; NaN where the height is."""
        return self._weight_at(heights)

    def __call__(
        self,
        predictions: Float[Array, "batch ..."],
        targets: Float[Array, "batch ..."],
        *,
        valid: Bool[Array, "batch ..."] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The loss of a batch; arguments and errors are those of `mse_loss`."""
        weight = self.pixel_weight(targets)
        return self.loss(predictions, targets, valid=valid, sample_weight=sample_weight, pixel_weight=weight)
