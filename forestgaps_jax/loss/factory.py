"""From the configuration to a loss."""

from forestgaps_jax.config import Config
from forestgaps_jax.loss.combined import BCELoss, CombinedFocalDiceLoss, DiceLoss, FocalLoss, Loss


def create_loss_function(config: Config) -> Loss:
    """The loss that ``config.loss_type`` names, with the settings of ``config``.

    >>> create_loss_function(Config(loss_type="focal"))
    FocalLoss(alpha=0.25, gamma=2.0)
    """
    match config.loss_type:
        case "focal":
            return FocalLoss(0.25 if config.focal_alpha is None else config.focal_alpha, config.focal_gamma)
        case "dice":
            return DiceLoss(config.dice_smooth, config.dice_reduction)
        case "bce":
            return BCELoss()
        case "combined_focal_dice":
            return CombinedFocalDiceLoss(
                alpha=config.loss_alpha,
                gamma=config.focal_gamma,
                focal_alpha=0.5 if config.focal_alpha is None else config.focal_alpha,
                smooth=config.dice_smooth,
                reduction=config.dice_reduction,
            )
