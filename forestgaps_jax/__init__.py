"""Predict forest canopy gaps from a surface model at any height threshold, in JAX/Flax."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "callbacks": ("Callback",),
    "config": ("Config",),
    "loop": ("evaluate", "predict", "train"),
    "loss": ("CombinedFocalDiceLoss",),
    "many": ("train_many",),
    "metrics": ("SegmentationMetrics", "ThresholdMetrics"),
    "models": ("create_model",),
    "state": ("TrainState", "create_state"),
    "trainer": ("Trainer", "train_model"),
    "types": ("Batch", "Data"),
}
"""Where the names are from: imported when first asked for, so that a command's --help needs no jax."""


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is not None:
        value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return value
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
