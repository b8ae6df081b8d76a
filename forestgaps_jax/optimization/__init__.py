"""Optimizers and learning-rate schedules, through optax."""

from forestgaps_jax.optimization.lr_schedulers import create_scheduler
from forestgaps_jax.optimization.optimizers import create_optimizer, kernel_mask

__all__ = ["create_optimizer", "create_scheduler", "kernel_mask"]
