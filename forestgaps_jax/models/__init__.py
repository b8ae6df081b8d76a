"""Networks from a surface tile and a height threshold to gap logits."""

from forestgaps_jax.models.deeplab import DeepLabV3Plus
from forestgaps_jax.models.drop_path import DropPath, drop_path
from forestgaps_jax.models.height import normalize_height
from forestgaps_jax.models.norm import AdaptiveNorm, Norm, choose_norm
from forestgaps_jax.models.registry import MODELS, create_model, create_model_from_config
from forestgaps_jax.models.summary import model_summary, parameter_count
from forestgaps_jax.models.unet import RegressionUNet, UNet

__all__ = [
    "MODELS",
    "AdaptiveNorm",
    "DeepLabV3Plus",
    "DropPath",
    "Norm",
    "RegressionUNet",
    "UNet",
    "choose_norm",
    "create_model",
    "create_model_from_config",
    "drop_path",
    "model_summary",
    "normalize_height",
    "parameter_count",
]
