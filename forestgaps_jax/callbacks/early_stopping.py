"""The end of a training that makes no progress."""

import logging
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.monitor import Monitor

_KEPT = ("params", "model_state", "ema_params")


class EarlyStoppingCallback(Callback):
    """Ends the training when a metric has not improved for ``patience`` epochs.

    Epochs that are in the history when the training starts, those of an interrupted run, count.

    Args:
        monitor: the metric (see `Monitor`).
        mode: whether less or more of it is better.
        patience: epochs without improvement after which the training ends; 0 is the same as 1.
        min_delta: least change that counts as improvement.
        restore_best: end with the weights and statistics of the best epoch, whatever ended the training.
            They are kept in memory, once more; the best epoch is that of this call of `train`.

    Attributes:
        monitor: the `Monitor`.
        best: the best value; None before the first.
        best_epoch: its epoch, counted from 0; None before the first.

    Raises:
        ValueError: no such metric, or a negative number; at the start: a validation metric without
            validation data, or a threshold that is not listed.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: str = "auto",
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = False,
    ):
        if patience < 0:
            raise ValueError(f"patience = {patience}: must be 0 or more")
        self.patience, self.restore_best = patience, restore_best
        self._settings = monitor, mode, min_delta
        self.monitor = Monitor(*self._settings)
        self.best_epoch: int | None = None

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self.monitor.best

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forget another training; count the epochs before this one."""
        self.monitor = Monitor(*self._settings)
        data = self.run.data
        self.monitor.check(self.run.config, validated=data is None or data.val is not None)
        self.best_epoch, self._waited = None, 0
        self._weights: dict[str, Any] | None = None
        history = self.run.history
        metrics = zip(history.get("train_metrics", ()), history.get("val_metrics", ()), strict=True)
        for epoch, (train, val) in enumerate(metrics):
            self._count(epoch, {"train_metrics": train, "val_metrics": val})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the best; stop when there was none for long."""
        assert logs is not None
        if self._count(epoch, logs) and self.restore_best:
            state = self.run.state
            # Copies: the next step takes the arrays of the state.
            self._weights = jax.tree.map(jnp.copy, {name: getattr(state, name) for name in _KEPT})
        if self._waited >= max(self.patience, 1) and epoch + 1 < self.run.config.epochs:
            self.run.stop(f"{self.monitor.name} {self._standstill()} for {self._waited} epochs")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the best weights back."""
        if self._weights is not None:
            self.run.load_weights(replace(self.run.state, **self._weights))
            self._weights = None
        elif self.restore_best:
            logging.getLogger(__name__).warning(
                "no epoch of this training improved %s: the last weights stay", self.monitor.name
            )

    def _count(self, epoch: int, logs: dict[str, Any]) -> bool:
        improved = self.monitor.update(logs)
        self._waited = 0 if improved else self._waited + 1
        if improved:
            self.best_epoch = epoch
        return improved

    def _standstill(self) -> str:
        if self.best_epoch is None:
            return "had no finite value"
        return f"has not improved on its {self.best:.4g} of epoch {self.best_epoch + 1}"
