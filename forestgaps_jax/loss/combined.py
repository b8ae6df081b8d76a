"""Focal and Dice loss together, and the losses as configured callables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Array, Bool, Float, Num

from forestgaps_jax.loss.dice import dice_loss
from forestgaps_jax.loss.focal import bce_loss, focal_loss


def focal_dice_loss(
    logits: Float[Array, "batch ..."],
    targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
    *,
    alpha: float = 0.5,
    gamma: float = 2.0,
    focal_alpha: float | None = 0.5,
    smooth: float = 1e-6,
    reduction: Literal["batch", "image"] = "batch",
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """``alpha * focal_loss + (1 - alpha) * dice_loss``.

    Args:
        logits: any shape with the batch first.
        targets: 1 for gap, 0 for not; of the same shape.
        alpha: share of the focal loss.
        gamma: focusing exponent of the focal loss.
        focal_alpha: weight of gap pixels inside the focal loss, ``1 - focal_alpha`` that of the others.
        smooth: pixels added to both sides of the Dice ratio.
        reduction: Dice over the ``"batch"`` or per ``"image"``.
        valid: pixels that count; None for all.
        sample_weight: factor on each sample's terms in both parts.

    Returns:
        A float32 scalar; 0 with zero gradient where no pixel is valid.

    Raises:
        ValueError: shapes differ, or an unknown reduction.
    """
    focal = focal_loss(
        logits, targets, alpha=focal_alpha, gamma=gamma, valid=valid, sample_weight=sample_weight
    )
    dice = dice_loss(
        logits, targets, smooth=smooth, reduction=reduction, valid=valid, sample_weight=sample_weight
    )
    return alpha * focal + (1.0 - alpha) * dice


Loss = Callable[..., Float[Array, ""]]
"""A loss with its settings fixed: ``loss(logits, targets, *, valid=None, sample_weight=None)``, a scalar.
Those below are hashable, so that a compiled function can take them as static."""


@dataclass(frozen=True)
class FocalLoss:
    """`focal_loss` with its settings fixed."""

    alpha: float | None = 0.25
    gamma: float = 2.0

    def __call__(self, logits, targets, *, valid=None, sample_weight=None):
        """The loss of a batch, a scalar."""
        return focal_loss(
            logits, targets, alpha=self.alpha, gamma=self.gamma, valid=valid, sample_weight=sample_weight
        )


@dataclass(frozen=True)
class DiceLoss:
    """`dice_loss` with its settings fixed."""

    smooth: float = 1e-6
    reduction: Literal["batch", "image"] = "batch"

    def __call__(self, logits, targets, *, valid=None, sample_weight=None):
        """The loss of a batch, a scalar."""
        return dice_loss(
            logits,
            targets,
            smooth=self.smooth,
            reduction=self.reduction,
            valid=valid,
            sample_weight=sample_weight,
        )


@dataclass(frozen=True)
class BCELoss:
    """`bce_loss` as an object beside the others."""

    def __call__(self, logits, targets, *, valid=None, sample_weight=None):
        """The loss of a batch, a scalar."""
        return bce_loss(logits, targets, valid=valid, sample_weight=sample_weight)


@dataclass(frozen=True)
class CombinedFocalDiceLoss:
    """`focal_dice_loss` with its settings fixed.

    >>> import jax.numpy as jnp
    >>> loss = CombinedFocalDiceLoss(alpha=0.5, gamma=2.0)
    >>> loss(jnp.full((1, 2, 2, 1), 9.0), jnp.ones((1, 2, 2, 1))).item() < 1e-4
    True
    """

    alpha: float = 0.5
    gamma: float = 2.0
    focal_alpha: float | None = 0.5
    smooth: float = 1e-6
    reduction: Literal["batch", "image"] = "batch"

    def __call__(self, logits, targets, *, valid=None, sample_weight=None):
        """The loss of a batch, a scalar."""
        return focal_dice_loss(
            logits,
            targets,
            alpha=self.alpha,
            gamma=self.gamma,
            focal_alpha=self.focal_alpha,
            smooth=self.smooth,
            reduction=self.reduction,
            valid=valid,
            sample_weight=sample_weight,
        )
