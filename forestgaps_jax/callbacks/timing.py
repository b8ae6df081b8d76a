"""How fast a training runs."""

import math
import time
from typing import Any

import jax
import numpy as np

from forestgaps_jax.callbacks.base import Callback


class Timer(Callback):
    """Measures the training steps of each epoch, without the first step of all, which compiles.

    What is measured is from one step to the next: reading the data counts, validation does not. The device
    is waited for after the first step and at the end of each epoch only. TensorBoard tags, by epoch:
    ``timer/tiles_per_second``, ``timer/ms_per_step``, ``timer/seconds_left``.

    Attributes:
        tiles_per_second: one entry an epoch; NaN where no step but the first ran.
        ms_per_step: likewise.
        seconds_left: until the last epoch, as a multiple of the mean duration of the epochs with their
            validation; the first, which compiles, counts only while it is the only one.
    """

    def __init__(self) -> None:
        self._forget()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget another training."""
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """The epochs that were measured."""
        if not self._epoch_times:
            return {}
        return {"measured": np.array([self.tiles_per_second, self.ms_per_step, self._epoch_times])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the measured epochs up."""
        self.tiles_per_second, self.ms_per_step, self._epoch_times = state["measured"].tolist()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._steps = self._tiles = 0
        self._start = self._end = time.perf_counter()

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the step; start the clock again after the first of all."""
        assert logs is not None
        if not self._compiled or batch + 1 == self.run.steps_per_epoch:
            jax.block_until_ready(logs["metrics"])
        self._end = time.perf_counter()
        if self._compiled:
            self._steps += 1
            self._tiles += logs["batch_size"]
        else:
            self._compiled, self._start = True, self._end

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the epoch."""
        assert logs is not None
        seconds = self._end - self._start
        measured = self._steps > 0 and seconds > 0
        self.tiles_per_second.append(self._tiles / seconds if measured else math.nan)
        self.ms_per_step.append(1000 * seconds / self._steps if measured else math.nan)
        self._epoch_times.append(logs["epoch_time"])
        counted = self._epoch_times[1:] or self._epoch_times
        self.seconds_left = (self.run.config.epochs - epoch - 1) * sum(counted) / len(counted)
        if self.run.events is not None:
            if measured:
                self.run.events.add_scalar("timer/tiles_per_second", self.tiles_per_second[-1], epoch)
                self.run.events.add_scalar("timer/ms_per_step", self.ms_per_step[-1], epoch)
            self.run.events.add_scalar("timer/seconds_left", self.seconds_left, epoch)

    def _forget(self) -> None:
        self.tiles_per_second: list[float] = []
        self.ms_per_step: list[float] = []
        self.seconds_left = math.nan
        self._epoch_times: list[float] = []
        self._compiled = False
