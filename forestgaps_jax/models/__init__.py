"""Networks from a surface tile and a height threshold to gap logits."""

from forestgaps_jax.host import run_in_calling_thread
from forestgaps_jax.models.canopy_height import DistributionUNet, RegressionUNet
from forestgaps_jax.models.deeplab import DeepLabV3Plus
from forestgaps_jax.models.ground import GroundUNet
from forestgaps_jax.models.height import normalize_height
from forestgaps_jax.models.registry import MODELS, create_model, create_model_from_config
from forestgaps_jax.models.summary import model_summary, parameter_count
from forestgaps_jax.models.unet import UNet

run_in_calling_thread()  # before a network's first key starts JAX

__all__ = [
    "MODELS",
    "DeepLabV3Plus",
    "DistributionUNet",
    "GroundUNet",
    "RegressionUNet",
    "UNet",
    "create_model",
    "create_model_from_config",
    "model_summary",
    "normalize_height",
    "parameter_count",
]
