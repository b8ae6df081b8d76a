"""Pixel losses from logits: pure functions, and the same with their settings fixed."""

from forestgaps_jax.loss.combined import (
    BCELoss,
    CombinedFocalDiceLoss,
    DiceLoss,
    FocalLoss,
    Loss,
    focal_dice_loss,
)
from forestgaps_jax.loss.dice import dice_loss
from forestgaps_jax.loss.factory import create_loss_function
from forestgaps_jax.loss.focal import bce_loss, focal_loss

__all__ = [
    "BCELoss",
    "CombinedFocalDiceLoss",
    "DiceLoss",
    "FocalLoss",
    "Loss",
    "bce_loss",
    "create_loss_function",
    "dice_loss",
    "focal_dice_loss",
    "focal_loss",
]
