"""Networks from a surface tile and a height threshold to gap logits."""

from forestgaps_jax.models.height import normalize_height
from forestgaps_jax.models.registry import MODELS, create_model, create_model_from_config
from forestgaps_jax.models.unet import UNet

__all__ = ["MODELS", "UNet", "create_model", "create_model_from_config", "normalize_height"]
