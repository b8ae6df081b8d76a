"""What `train` hooks in by itself."""

from collections.abc import Iterable

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.checkpointing import CheckpointingCallback
from forestgaps_jax.callbacks.early_stopping import EarlyStoppingCallback
from forestgaps_jax.callbacks.logging import LoggingCallback
from forestgaps_jax.callbacks.profiling import Profiler
from forestgaps_jax.callbacks.progress import ProgressBar
from forestgaps_jax.callbacks.visualization import VisualizationCallback
from forestgaps_jax.config import Config


def with_defaults(config: Config, on_disk: bool, callbacks: Iterable[Callback]) -> list[Callback]:
    """The callbacks that the settings ask for, and the user's own after them.

    One of the user's own replaces a default one of its kind. Checkpoints come last, so that what the other
    callbacks ask for is seen in the same step.

    Args:
        config: the settings.
        on_disk: whether the run has a folder to write to.
        callbacks: the user's own.

    Raises:
        ValueError: the user gives several `CheckpointingCallback`.
    """
    own = list(callbacks)
    savers = [callback for callback in own if isinstance(callback, CheckpointingCallback)]
    if len(savers) > 1:
        raise ValueError(f"callbacks hold {len(savers)} CheckpointingCallback for one run folder: give one")
    before = [
        default
        for default in _defaults(config, on_disk)
        if not any(isinstance(callback, type(default)) for callback in own)
    ]
    others = [callback for callback in own if not isinstance(callback, CheckpointingCallback)]
    return [*before, *others, *(savers or ([CheckpointingCallback()] if on_disk else []))]


def _defaults(config: Config, on_disk: bool) -> list[Callback]:
    """All but the checkpoints."""
    defaults: list[Callback] = []
    if config.use_progress_bar:
        defaults.append(ProgressBar())
    if on_disk:
        defaults.append(LoggingCallback())
    if config.use_early_stopping:
        defaults.append(_early_stopping(config))
    if on_disk and config.vis_save_frequency:
        defaults.append(VisualizationCallback())
    if config.profile_steps is not None:
        defaults.append(Profiler(*config.profile_steps))
    return defaults


def _early_stopping(config: Config) -> EarlyStoppingCallback:
    return EarlyStoppingCallback(
        config.early_stopping_monitor,
        config.early_stopping_mode,
        config.early_stopping_patience,
        config.early_stopping_min_delta,
        config.early_stopping_restore_best,
    )
