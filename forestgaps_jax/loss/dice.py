"""Dice loss."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from forestgaps_jax.loss.base import GapLoss
from forestgaps_jax.loss.inputs import mask_invalid
from forestgaps_jax.loss.reduction import weight_samples
from forestgaps_jax.settings import NotNegative

_SMALLEST_SMOOTH = 1e-18
"""The slope of a ratio divides by the square of what is below, which of a smaller one is no float32."""


def dice_loss(
    logits: Float[Array, "batch ..."],
    targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
    *,
    smooth: float = 1e-6,
    reduction: Literal["batch", "image"] = "batch",
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    from_logits: bool = True,
) -> Float[Array, ""]:
    r"""One minus the soft Dice overlap of predicted and true gap.

    $$L = 1 - \frac{2\sum_i p_i y_i + s}{\sum_i p_i + \sum_i y_i + s}, \quad p = \sigma(x)$$

    Args:
        logits: any shape with the batch first.
        targets: 1 for gap, 0 for not; of the same shape.
        smooth: ``s``, pixels added above and below, 1e-18 at least: an empty target met by an empty
            prediction costs 0.
        reduction: ``"batch"`` sums over all pixels of the batch, so that a tile without gaps does not
            jump between 0 and 1, and that it does not matter which tile of the batch a pixel lies in;
            ``"image"`` takes each sample's own Dice and averages them over the samples that have a valid
            pixel. The mean of several batches' losses is that of their union only per image, and with
            equally many such samples in each.
        valid: pixels that count; None for all.
        sample_weight: factor on each sample's sums (``"batch"``) or on its loss (``"image"``).
        from_logits: False where ``logits`` are probabilities, see `logits_from_probabilities`.

    Returns:
        A float32 scalar; 0 with zero gradient where no pixel is valid.

    Raises:
        ValueError: shapes differ, an unknown reduction, or a probability outside [0, 1].

    Source: Milletari et al. 2016, V-Net, arXiv:1606.04797, with plain sums below as in forestgaps.

    >>> dice_loss(jnp.full((1, 2, 2, 1), 50.0), jnp.ones((1, 2, 2, 1))).item()
    0.0
    """
    if reduction not in ("batch", "image"):
        raise ValueError(f"reduction = {reduction!r}: must be 'batch' or 'image'")
    logits, targets, pixels = mask_invalid(logits, targets, valid, from_logits=from_logits)
    probabilities = jax.nn.sigmoid(logits) * pixels
    both = _sum_per_sample(probabilities * targets)
    either = _sum_per_sample(probabilities + targets)
    if reduction == "batch":
        both, either = (jnp.sum(weight_samples(x, sample_weight)) for x in (both, either))
        return _one_minus_overlap(both, either, smooth)
    losses = weight_samples(_one_minus_overlap(both, either, smooth), sample_weight)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(_sum_per_sample(pixels) > 0), 1)


@dataclass(frozen=True)
class DiceLoss(GapLoss):
    """`dice_loss` with its settings fixed: ``smooth`` 0 or more."""

    smooth: NotNegative = 1e-6
    reduction: Literal["batch", "image"] = "batch"

    def _value(self, logits: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return dice_loss(logits, targets, smooth=self.smooth, reduction=self.reduction, **pixels)


def _one_minus_overlap(
    both: Float[Array, "*samples"], either: Float[Array, "*samples"], smooth: float
) -> Float[Array, "*samples"]:
    return (either - 2.0 * both) / (either + jnp.maximum(smooth, _SMALLEST_SMOOTH))


def _sum_per_sample(values: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
