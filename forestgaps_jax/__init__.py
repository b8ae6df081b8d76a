"""Predict forest canopy gaps from a surface model at any height threshold, in JAX/Flax."""

from forestgaps_jax.callbacks import Callback
from forestgaps_jax.config import Config
from forestgaps_jax.loop import evaluate, predict, train
from forestgaps_jax.loss import CombinedFocalDiceLoss
from forestgaps_jax.many import train_many
from forestgaps_jax.metrics import SegmentationMetrics, ThresholdMetrics
from forestgaps_jax.models import create_model
from forestgaps_jax.state import TrainState, create_state
from forestgaps_jax.trainer import Trainer, train_model
from forestgaps_jax.types import Batch, Data

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Callback",
    "CombinedFocalDiceLoss",
    "Config",
    "Data",
    "SegmentationMetrics",
    "ThresholdMetrics",
    "TrainState",
    "Trainer",
    "create_model",
    "create_state",
    "evaluate",
    "predict",
    "train",
    "train_many",
    "train_model",
]
