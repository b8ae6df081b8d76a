"""Optimizers, learning-rate schedules and regularisation, through optax."""

from forestgaps_jax.optimization.clipping import GradientClipping
from forestgaps_jax.optimization.lr_schedulers import create_scheduler, learning_rates
from forestgaps_jax.optimization.optimizers import clip_and_accumulate, create_optimizer, kernel_mask
from forestgaps_jax.optimization.plateau import Plateau, PlateauState, create_plateau, metric_mode
from forestgaps_jax.optimization.regularization import (
    AdaptiveNorm,
    CompositeRegularization,
    DropPath,
    drop_path_rates,
    drop_path_schedule,
)

__all__ = [
    "AdaptiveNorm",
    "CompositeRegularization",
    "DropPath",
    "GradientClipping",
    "Plateau",
    "PlateauState",
    "clip_and_accumulate",
    "create_optimizer",
    "create_plateau",
    "create_scheduler",
    "drop_path_rates",
    "drop_path_schedule",
    "kernel_mask",
    "learning_rates",
    "metric_mode",
]
