"""Hooks around the training loop, and those that come with the library."""

from forestgaps_jax.callbacks.base import EVENTS, Callback, CallbackList, Run, new_run_folder
from forestgaps_jax.callbacks.checkpointing import CheckpointingCallback
from forestgaps_jax.callbacks.logging import LoggingCallback
from forestgaps_jax.callbacks.monitor import Monitor
from forestgaps_jax.callbacks.progress import ProgressBar

__all__ = [
    "EVENTS",
    "Callback",
    "CallbackList",
    "CheckpointingCallback",
    "LoggingCallback",
    "Monitor",
    "ProgressBar",
    "Run",
    "new_run_folder",
]
