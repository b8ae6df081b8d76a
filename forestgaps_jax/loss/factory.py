"""From the configuration to a loss."""

from collections.abc import Mapping
from typing import Any

from forestgaps_jax.config import Config
from forestgaps_jax.loss.adaptive import AdaptiveLoss
from forestgaps_jax.loss.base import Loss
from forestgaps_jax.loss.combined import CombinedFocalDiceLoss, ComboLoss
from forestgaps_jax.loss.dice import DiceLoss
from forestgaps_jax.loss.focal import BCELoss, FocalLoss
from forestgaps_jax.loss.regression import (
    CombinedRegressionLoss,
    HuberLoss,
    MAELoss,
    MSELoss,
    RegressionLoss,
)
from forestgaps_jax.loss.threshold_weights import create_threshold_weights
from forestgaps_jax.loss.weighted import ThresholdWeightedLoss, ThresholdWeightedRegressionLoss

__all__ = [
    "create_loss_function",
    "create_loss_with_threshold_weights",
    "create_threshold_weights",
    "weigh_by_threshold",
]


def create_loss_function(config: Config) -> Loss:
    """The loss that ``config.loss_type`` names, with the settings of ``config``.

    Raises:
        ValueError: adaptive without a part, or with ``adaptive_weights`` that do not fit its parts.

    >>> create_loss_function(Config(loss_type="focal", focal_gamma=1.0))
    FocalLoss(from_logits=True, label_smoothing=0.0, alpha=0.25, gamma=1.0)
    """
    focal_alpha = 0.25 if config.focal_alpha is None else config.focal_alpha
    gamma, smoothing = config.focal_gamma, config.label_smoothing
    match config.loss_type:
        case "focal":
            return FocalLoss(focal_alpha, gamma, label_smoothing=smoothing)
        case "dice":
            return DiceLoss(config.dice_smooth, config.dice_reduction, label_smoothing=smoothing)
        case "bce":
            return BCELoss(label_smoothing=smoothing)
        case "combined_focal_dice":
            return CombinedFocalDiceLoss(
                alpha=config.loss_alpha,
                gamma=gamma,
                focal_alpha=0.5 if config.focal_alpha is None else config.focal_alpha,
                smooth=config.dice_smooth,
                reduction=config.dice_reduction,
                label_smoothing=smoothing,
            )
        case "combo":
            return ComboLoss(
                config.combo_weights,
                focal_alpha,
                gamma,
                config.dice_smooth,
                config.dice_reduction,
                label_smoothing=smoothing,
            )
        case "adaptive":
            return AdaptiveLoss(_adaptive_parts(config), config.adaptive_weights, label_smoothing=smoothing)
    return _regression_loss(config)


def _adaptive_parts(config: Config) -> tuple[Loss, ...]:
    parts: list[Loss] = []
    if config.use_focal:
        parts.append(
            FocalLoss(0.25 if config.focal_alpha is None else config.focal_alpha, config.focal_gamma)
        )
    if config.use_dice:
        parts.append(DiceLoss(config.dice_smooth, config.dice_reduction))
    if config.use_bce:
        parts.append(BCELoss())
    if not parts:
        raise ValueError("loss_type = 'adaptive' has no part: set use_focal, use_dice or use_bce")
    return tuple(parts)


def _regression_loss(config: Config) -> RegressionLoss:
    match config.loss_type:
        case "mse":
            return MSELoss()
        case "mae":
            return MAELoss()
        case "huber":
            return HuberLoss(config.huber_delta)
        case "combined_regression":
            return CombinedRegressionLoss()
    raise ValueError(f"there is no loss for loss_type = {config.loss_type!r}")


def create_loss_with_threshold_weights(
    config: Config, stats: Mapping[float, float | Mapping[str, Any]]
) -> ThresholdWeightedLoss | ThresholdWeightedRegressionLoss:
    """The loss of `create_loss_function` with the weights of `create_threshold_weights`.

    A gap loss is then called with ``threshold=`` and weighs samples by it; a loss of canopy height weighs
    each pixel by its true height.

    Args:
        config: the settings.
        stats: of each threshold (m) the share of gap pixels in the training data.

    Raises:
        ValueError: settings or shares that do not fit.
        TypeError: a share that is no number.

    >>> loss = create_loss_with_threshold_weights(Config(thresholds=(5.0, 10.0)), {5.0: 0.1, 10.0: 0.3})
    >>> loss.sample_weight(7.5).round(3).item()
    1.0
    """
    return weigh_by_threshold(create_loss_function(config), create_threshold_weights(config, stats))


def weigh_by_threshold(
    loss: Loss, weights: Mapping[float, float]
) -> ThresholdWeightedLoss | ThresholdWeightedRegressionLoss:
    """Give a loss weights by height threshold (m): of samples, or of pixels for a loss of canopy height.

    Raises:
        ValueError: it has such weights already.
    """
    if getattr(loss, "needs_threshold", False):
        raise ValueError(f"{loss} has threshold weights of its own: set use_threshold_weights = false")
    heights = getattr(loss, "target", "mask") == "chm"
    weighted = ThresholdWeightedRegressionLoss if heights else ThresholdWeightedLoss
    return weighted(loss, tuple(weights), tuple(weights.values()))
