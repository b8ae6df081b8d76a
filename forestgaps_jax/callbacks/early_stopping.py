"""The end of a training that makes no progress."""

import logging
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.monitor import Monitor
from forestgaps_jax.callbacks.run import weights_of


class EarlyStoppingCallback(Callback):
    """Ends the training when a metric has not improved for ``patience`` epochs.

    Epochs that are in the history when the training starts, those of an interrupted run, count; where they
    have used up the patience, nothing more is trained.

    Args:
        monitor: the metric (see `Monitor`).
        mode: whether less or more of it is better.
        patience: epochs without improvement after which the training ends; 0 is the same as 1.
        min_delta: least change that counts as improvement.
        restore_best: end with the weights and statistics of the best epoch, whatever ended the training.
            They are kept in memory, once more, and in checkpoints. Where a training is given a history and
            no checkpoint to go on from, the best epoch is that of this call of `train`.

    Attributes:
        monitor: the `Monitor`.
        best: the best value; None before the first.
        best_epoch: its epoch, counted from 0; None before the first.

    Raises:
        ValueError: no such metric, or a negative number; at the start: a metric that this training will
            never measure.
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
        data, config = self.run.data, self.run.config
        self.monitor.check(config, data is None or data.val is not None, self.run.heights)
        self.best_epoch, self._waited, self._measured = None, 0, False
        self._weights: dict[str, Any] | None = None
        for epoch, past in enumerate(self.run.past_epochs()):
            self._count(epoch, past)
        if int(self.run.state.step) < config.epochs * self.run.steps_per_epoch:
            self._stop_if_standing()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keep the best; stop when there was none for long."""
        assert logs is not None
        self._measured = True
        if self._count(epoch, logs) and self.restore_best:
            # Copies: the next step takes the arrays of the state.
            self._weights = jax.tree.map(jnp.copy, weights_of(self.run.state))
        if epoch + 1 < self.run.config.epochs:
            self._stop_if_standing()

    def state_dict(self) -> dict[str, Any]:
        """The best weights, where they are to be given back."""
        return {} if self._weights is None else {"weights": jax.tree.leaves(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the best weights again."""
        structure = jax.tree.structure(weights_of(self.run.state))
        self._weights = jax.tree.unflatten(structure, map(jnp.array, state["weights"]))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give the best weights back; not where the training is to go on from its latest."""
        if self.run.interrupted:
            return
        if self._weights is not None:
            self.run.load_weights(replace(self.run.state, **self._weights))
            self._weights = None
        elif self.restore_best and self._measured:
            logging.getLogger(__name__).warning(
                "no epoch of this training improved %s: the last weights stay", self.monitor.name
            )

    def _count(self, epoch: int, logs: dict[str, Any]) -> bool:
        improved = self.monitor.update(logs)
        self._waited = 0 if improved else self._waited + 1
        if improved:
            self.best_epoch = epoch
        return improved

    def _stop_if_standing(self) -> None:
        if self._waited < max(self.patience, 1):
            return
        course = "had no finite value"
        if self.best_epoch is not None:
            course = f"has not improved on its {self.best:.4g} of epoch {self.best_epoch + 1}"
        self.run.stop(f"{self.monitor.name} {course} for {self._waited} epochs")
