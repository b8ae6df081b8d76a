"""Cross-entropy, focal and Dice loss together, in fixed shares."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Array, Bool, Float, Num

from forestgaps_jax.loss.base import GapLoss, Weight
from forestgaps_jax.loss.dice import DiceLoss, dice_loss
from forestgaps_jax.loss.focal import BCELoss, FocalLoss, bce_loss, focal_loss
from forestgaps_jax.loss.weighted import Threshold, ThresholdWeightedLoss, weight_table
from forestgaps_jax.settings import Fraction, NotNegative

__all__ = ["BCELoss", "CombinedFocalDiceLoss", "ComboLoss", "DiceLoss", "FocalLoss", "focal_dice_loss"]


def focal_dice_loss(
    logits: Float[Array, "batch ..."],
    targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
    *,
    alpha: Weight = 0.5,
    gamma: float = 2.0,
    focal_alpha: Weight | None = 0.5,
    smooth: float = 1e-6,
    reduction: Literal["batch", "image"] = "batch",
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    from_logits: bool = True,
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
        from_logits: False where ``logits`` are probabilities, see `logits_from_probabilities`.

    Returns:
        A float32 scalar; 0 with zero gradient where no pixel is valid.

    Raises:
        ValueError: shapes differ, an unknown reduction, or a probability outside [0, 1].

    >>> import jax.numpy as jnp
    >>> focal_dice_loss(jnp.zeros((1, 4)), jnp.asarray([[1, 1, 0, 0]]), alpha=0.0).round(4).item()
    0.5
    """
    pixels = {"valid": valid, "sample_weight": sample_weight, "from_logits": from_logits}
    focal = focal_loss(logits, targets, alpha=focal_alpha, gamma=gamma, **pixels)
    dice = dice_loss(logits, targets, smooth=smooth, reduction=reduction, **pixels)
    return alpha * focal + (1.0 - alpha) * dice


@dataclass(frozen=True)
class CombinedFocalDiceLoss(GapLoss):
    """`focal_dice_loss` with its settings fixed, and perhaps with threshold weights.

    The first four settings are in the order of forestgaps, the others are given by name.

    Attributes:
        alpha: share of the focal loss, from 0 to 1.
        gamma: focusing exponent of the focal loss, 0 or more.
        smooth: pixels added to both sides of the Dice ratio, 0 or more.
        threshold_weights: weight at each height threshold (m), see `ThresholdWeightedLoss`: a mapping or
            pairs, kept as pairs. None: all weigh the same.
        focal_alpha: weight of gap pixels inside the focal loss, from 0 to 1; None for 1 and 1.
        reduction: Dice over the ``"batch"`` or per ``"image"``.

    Raises:
        ValueError: a setting out of range, or threshold weights that do not fit.
        TypeError: a setting of another type.

    >>> import jax.numpy as jnp
    >>> logits, targets = jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
    >>> plain, weighted = CombinedFocalDiceLoss(), CombinedFocalDiceLoss(threshold_weights={5: 0.0, 10: 1.0})
    >>> bool(weighted(logits, targets, threshold=10.0) == plain(logits, targets))
    True
    """

    alpha: Fraction = 0.5
    gamma: NotNegative = 2.0
    smooth: NotNegative = 1e-6
    threshold_weights: Mapping[float, float] | Sequence[tuple[float, float]] | None = None
    _: KW_ONLY
    focal_alpha: Fraction | None = 0.5
    reduction: Literal["batch", "image"] = "batch"

    _checked_apart: ClassVar[tuple[str, ...]] = ("threshold_weights",)
    arguments: ClassVar[tuple[str, ...]] = ("alpha", "focal_alpha")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold_weights is not None:
            given = self.threshold_weights
            pairs = tuple(given.items() if isinstance(given, Mapping) else given)
            table = weight_table([height for height, _ in pairs], [weight for _, weight in pairs])
            object.__setattr__(self, "threshold_weights", tuple(zip(*table, strict=True)))

    @property
    def needs_threshold(self) -> bool:
        """Whether the loss has threshold weights, and so is called with ``threshold=``."""
        return self.threshold_weights is not None

    def __call__(
        self,
        logits: Float[Array, "batch ..."],
        targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
        *,
        threshold: Threshold | None = None,
        valid: Bool[Array, "batch ..."] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The loss of a batch; arguments are those of `ThresholdWeightedLoss`.

        Raises:
            ValueError: shapes differ, or there are threshold weights but no ``threshold``.
        """
        pixels = {"valid": valid, "sample_weight": sample_weight}
        if self.threshold_weights is None:
            return super().__call__(logits, targets, **pixels)
        if threshold is None:
            raise ValueError("the loss has threshold_weights: call it with threshold=, one for each sample")
        thresholds, weights = zip(*self.threshold_weights, strict=True)
        weighted = ThresholdWeightedLoss(super().__call__, thresholds, weights)
        return weighted(logits, targets, threshold=threshold, **pixels)

    def _value(self, logits: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return focal_dice_loss(
            logits,
            targets,
            alpha=self.alpha,
            gamma=self.gamma,
            focal_alpha=self.focal_alpha,
            smooth=self.smooth,
            reduction=self.reduction,
            **pixels,
        )


@dataclass(frozen=True)
class ComboLoss(GapLoss):
    """Cross-entropy, Dice and focal loss in fixed shares.

    Attributes:
        weights: factors of BCE, Dice and focal loss, 0 or more.
        focal_alpha: weight of gap pixels inside the focal loss, from 0 to 1; None for 1 and 1.
        gamma: focusing exponent of the focal loss, 0 or more.
        smooth: pixels added to both sides of the Dice ratio, 0 or more.
        reduction: Dice over the ``"batch"`` or per ``"image"``.

    Raises:
        ValueError: not three weights, or a setting out of range.
        TypeError: a setting of another type.

    >>> import jax.numpy as jnp
    >>> ComboLoss(weights=(0.0, 1.0, 0.0))(jnp.zeros((1, 4)), jnp.asarray([[1, 1, 0, 0]])).round(4).item()
    0.5
    """

    weights: tuple[NotNegative, NotNegative, NotNegative] = (0.5, 0.3, 0.2)
    focal_alpha: Fraction | None = 0.25
    gamma: NotNegative = 2.0
    smooth: NotNegative = 1e-6
    reduction: Literal["batch", "image"] = "batch"

    arguments: ClassVar[tuple[str, ...]] = ("weights", "focal_alpha")

    def _value(self, logits: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        bce, dice, focal = self.weights
        return (
            bce * bce_loss(logits, targets, **pixels)
            + dice * dice_loss(logits, targets, smooth=self.smooth, reduction=self.reduction, **pixels)
            + focal * focal_loss(logits, targets, alpha=self.focal_alpha, gamma=self.gamma, **pixels)
        )
