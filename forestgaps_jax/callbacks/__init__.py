"""Hooks around the training loop, and those that come with the library."""

from forestgaps_jax.callbacks.base import EVENTS, Callback, CallbackList
from forestgaps_jax.callbacks.checkpointing import CheckpointingCallback
from forestgaps_jax.callbacks.defaults import with_defaults
from forestgaps_jax.callbacks.early_stopping import EarlyStoppingCallback
from forestgaps_jax.callbacks.functions import LambdaCallback
from forestgaps_jax.callbacks.learning_rate import LearningRateMonitor
from forestgaps_jax.callbacks.logging import LoggingCallback
from forestgaps_jax.callbacks.monitor import Monitor
from forestgaps_jax.callbacks.profiling import Profiler
from forestgaps_jax.callbacks.progress import ProgressBar
from forestgaps_jax.callbacks.run import Position, Run
from forestgaps_jax.callbacks.timing import Timer
from forestgaps_jax.callbacks.visualization import ConfusionVisualizer, FigureCallback, VisualizationCallback

__all__ = [
    "EVENTS",
    "Callback",
    "CallbackList",
    "CheckpointingCallback",
    "ConfusionVisualizer",
    "EarlyStoppingCallback",
    "FigureCallback",
    "LambdaCallback",
    "LearningRateMonitor",
    "LoggingCallback",
    "Monitor",
    "Position",
    "Profiler",
    "ProgressBar",
    "Run",
    "Timer",
    "VisualizationCallback",
    "with_defaults",
]
