"""Losses of gaps from logits and of canopy heights: pure functions, and the same with settings fixed."""

from forestgaps_jax.loss.adaptive import AdaptiveLoss
from forestgaps_jax.loss.arguments import join_weights, split_weights
from forestgaps_jax.loss.base import Loss
from forestgaps_jax.loss.combined import CombinedFocalDiceLoss, ComboLoss, focal_dice_loss
from forestgaps_jax.loss.dice import DiceLoss, dice_loss
from forestgaps_jax.loss.factory import (
    create_loss_function,
    create_loss_with_threshold_weights,
    weigh_by_threshold,
)
from forestgaps_jax.loss.focal import BCELoss, FocalLoss, bce_loss, focal_loss
from forestgaps_jax.loss.inputs import smooth_labels
from forestgaps_jax.loss.regression import (
    CombinedRegressionLoss,
    HuberLoss,
    MAELoss,
    MSELoss,
    combined_regression_loss,
    huber_loss,
    mae_loss,
    mse_loss,
)
from forestgaps_jax.loss.threshold_weights import create_threshold_weights
from forestgaps_jax.loss.weighted import ThresholdWeightedLoss, ThresholdWeightedRegressionLoss

__all__ = [
    "AdaptiveLoss",
    "BCELoss",
    "CombinedFocalDiceLoss",
    "CombinedRegressionLoss",
    "ComboLoss",
    "DiceLoss",
    "FocalLoss",
    "HuberLoss",
    "Loss",
    "MAELoss",
    "MSELoss",
    "ThresholdWeightedLoss",
    "ThresholdWeightedRegressionLoss",
    "bce_loss",
    "combined_regression_loss",
    "create_loss_function",
    "create_loss_with_threshold_weights",
    "create_threshold_weights",
    "dice_loss",
    "focal_dice_loss",
    "focal_loss",
    "huber_loss",
    "join_weights",
    "mae_loss",
    "mse_loss",
    "smooth_labels",
    "split_weights",
    "weigh_by_threshold",
]
