"""What `train` hooks in by itself."""

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.checkpointing import CheckpointingCallback
from forestgaps_jax.callbacks.early_stopping import EarlyStoppingCallback
from forestgaps_jax.callbacks.logging import LoggingCallback
from forestgaps_jax.callbacks.profiling import Profiler
from forestgaps_jax.callbacks.progress import ProgressBar
from forestgaps_jax.callbacks.visualization import VisualizationCallback
from forestgaps_jax.config import Config


def default_callbacks(config: Config, on_disk: bool) -> tuple[list[Callback], list[Callback]]:
    """The callbacks that the settings ask for: those before the user's own, and those after them.

    Checkpoints come last, so that what the user's callbacks ask for is seen in the same step.

    Args:
        config: the settings.
        on_disk: whether the run has a folder to write to.
    """
    before: list[Callback] = []
    if config.use_progress_bar:
        before.append(ProgressBar())
    if on_disk:
        before.append(LoggingCallback())
    if config.use_early_stopping:
        before.append(_early_stopping(config))
    if on_disk and config.vis_save_frequency:
        before.append(VisualizationCallback())
    if config.profile_steps is not None:
        before.append(Profiler(*config.profile_steps))
    return before, [CheckpointingCallback()] if on_disk else []


def _early_stopping(config: Config) -> EarlyStoppingCallback:
    return EarlyStoppingCallback(
        config.early_stopping_monitor,
        config.early_stopping_mode,
        config.early_stopping_patience,
        config.early_stopping_min_delta,
        config.early_stopping_restore_best,
    )
