"""A trace of what the device does in some steps."""

import logging
from pathlib import Path
from typing import Any

import jax

from forestgaps_jax.callbacks.base import Callback


class Profiler(Callback):
    """Traces training steps with ``jax.profiler``, for TensorBoard's profile plugin or Perfetto.

    A training that ends before the last step leaves the trace of the steps that it took. The first step of
    all also compiles: leave it out unless that is what you look for.

    Args:
        first_step: first step to trace, counted from 0 over the whole training.
        last_step: last step to trace.
        folder: where to write; None for ``profile`` in the run folder.

    Raises:
        ValueError: steps that are negative or the wrong way round; at the start: no folder to write to.
    """

    main_only = True

    def __init__(self, first_step: int, last_step: int, folder: str | Path | None = None):
        if not 0 <= first_step <= last_step:
            raise ValueError(
                f"first_step = {first_step}, last_step = {last_step}: must be 0 or more, the first the lower"
            )
        self.first_step, self.last_step = first_step, last_step
        self._given = folder

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """See where to write."""
        self._on = self._traced = False
        if self._given is not None:
            self._folder = Path(self._given)
        elif self.run.folder is not None:
            self._folder = self.run.folder / "profile"
        else:
            raise ValueError("a run without a name has no folder for a profile: give config.name, or folder")

    def on_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Start at the first step, or at the first after it where the training begins later."""
        assert logs is not None
        step = logs["epoch"] * self.run.steps_per_epoch + batch
        if not self._on and self.first_step <= step <= self.last_step:
            jax.profiler.start_trace(str(self._folder))
            self._on = self._traced = True

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop after the last step, once the device has finished it."""
        assert logs is not None
        self._last = logs["metrics"]
        if self._on and logs["epoch"] * self.run.steps_per_epoch + batch == self.last_step:
            self._stop()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop where the training ended before the last step."""
        if self._on:
            self._stop()
        elif not self._traced:
            logging.getLogger(__name__).warning(
                "no profile: the training took no step from %d to %d", self.first_step, self.last_step
            )

    def _stop(self) -> None:
        self._on = False
        try:
            jax.block_until_ready(self._last)
        finally:
            jax.profiler.stop_trace()
