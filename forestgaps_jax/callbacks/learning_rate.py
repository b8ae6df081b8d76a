"""The learning rate of every step."""

import math
from typing import Any

import jax
import numpy as np

from forestgaps_jax.callbacks.base import Callback


class LearningRateMonitor(Callback):
    """Records the learning rate that each training step used; TensorBoard tag ``learning_rate/step``.

    The rates stay on the device until the end of the epoch, so that no step is waited for. A rate that only
    the optimizer knows (NaN) is recorded as such, and is not sent to TensorBoard.

    Attributes:
        steps: the steps, counted from 0 over the whole training; of the epochs that have ended.
        rates: their learning rates.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rates: list[float] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget another training."""
        self.steps, self.rates = [], []
        self._in_flight: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """All rates, those of the epoch begun too."""
        state = {"steps": np.array(self.steps, int), "rates": np.array(self.rates, float)}
        flying = {"steps": np.array(list(self._in_flight), int), "rates": list(self._in_flight.values())}
        parts = {"done": state, "in_flight": flying}
        return {name: part for name, part in parts.items() if len(part["steps"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the rates up."""
        if "done" in state:
            self.steps, self.rates = (state["done"][name].tolist() for name in ("steps", "rates"))
        if "in_flight" in state:
            flying = state["in_flight"]
            self._in_flight = dict(zip(flying["steps"].tolist(), flying["rates"], strict=True))

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the rate, on the device."""
        assert logs is not None
        self._in_flight[logs["epoch"] * self.run.steps_per_epoch + batch] = logs["metrics"]["lr"]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Fetch the rates of the epoch."""
        rates = {step: float(rate) for step, rate in jax.device_get(self._in_flight).items()}
        self.steps += rates
        self.rates += rates.values()
        self._in_flight = {}
        if self.run.events is not None:
            for step, rate in rates.items():
                if not math.isnan(rate):
                    self.run.events.add_scalar("learning_rate/step", rate, step)
