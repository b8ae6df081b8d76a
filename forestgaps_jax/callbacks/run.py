"""A training as its callbacks see it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import jax.numpy as jnp

from forestgaps_jax.config import Config
from forestgaps_jax.parallel import ONE_DEVICE, Devices
from forestgaps_jax.state import TrainState
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import Data

if TYPE_CHECKING:
    from forestgaps_jax.callbacks.base import Callback

_WEIGHTS = ("params", "model_state", "loss_params", "ema_params")


@dataclass
class Position:
    """Where a training stands between two steps, besides its state and its history.

    Attributes:
        epoch: that is going on, or comes next; counted from 0.
        batch: training batches of it that are done.
        totals: sums of its training batches so far; None before the first.
        lr: learning rate of its latest step.
        seconds: that it has taken, over all the processes that worked on it.
        source: where the iterator of the training data stands, or what gives that; None for a sampler.
    """

    epoch: int = 0
    batch: int = 0
    totals: Totals | None = None
    lr: Any = math.nan
    seconds: float = 0.0
    source: Any = None

    def place_in_source(self) -> Any:
        """Where the iterator of the training data stands, as JSON."""
        return self.source() if callable(self.source) else self.source


class Run:
    """A training as its callbacks see it.

    A callback reads it, and asks through its methods for what shall happen.

    Attributes:
        config: the settings.
        steps_per_epoch: training batches in an epoch.
        data: the sources; None in a bare `evaluate`.
        history: what `train` will return.
        folder: the run folder; None for a run without a name, which writes nothing.
        heights: whether the network predicts heights and no gap probabilities; None where that is not known.
        devices: that the state lies on.
        events: TensorBoard's writer; None where there is none.
        stop_reason: why the training is to end; None while it goes on.
        interrupted: whether the training is to end at once, for a signal, and to go on later.
        save_requested: whether a checkpoint is to be written after the current step.
        position: where the training stands.
        callbacks: all of them.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        steps_per_epoch: int,
        data: Data | None = None,
        history: dict[str, list[Any]] | None = None,
        folder: Path | None = None,
        heights: bool | None = None,
        devices: Devices = ONE_DEVICE,
    ):
        self.config, self._state, self.steps_per_epoch = config, state, steps_per_epoch
        self.data, self.folder, self.heights, self.devices = data, folder, heights, devices
        self.history: dict[str, list[Any]] = {} if history is None else history
        self.events: Any = None
        self.stop_reason: str | None = None
        self.interrupted = False
        self.save_requested = False
        self.position = Position()
        self.callbacks: list[Callback] = []

    @property
    def state(self) -> TrainState:
        """The state after the latest step. Read it, do not keep its arrays: the next step takes them."""
        return self._state

    @state.setter
    def state(self, state: TrainState) -> NoReturn:
        raise AttributeError("run.state is only to read: ask with run.load_weights, run.stop or run.save")

    def past_epochs(self) -> Iterator[dict[str, Any]]:
        """The metrics of the epochs in the history, as `Callback.on_epoch_end` gets them in its logs."""
        phases = "train_metrics", "val_metrics"
        for metrics in zip(*(self.history.get(phase, ()) for phase in phases), strict=True):
            yield dict(zip(phases, metrics, strict=True))

    def stop(self, reason: str) -> None:
        """Ask the loop to end after the current step; at the start of a training, before its first."""
        self.stop_reason = reason

    def save(self) -> None:
        """Ask for a checkpoint after the current step; it becomes the last, which later ones replace."""
        self.save_requested = True

    def load_weights(self, state: TrainState) -> None:
        """Copy the weights and statistics of another moment; steps and optimizer stay those of now.

        Raises:
            ValueError: the state is of another model.
        """
        weights, own = weights_of(state), weights_of(self.state)
        if jax.tree.structure(weights) != jax.tree.structure(own) or jax.tree.leaves(
            jax.tree.map(jnp.shape, weights)
        ) != jax.tree.leaves(jax.tree.map(jnp.shape, own)):
            raise ValueError("load_weights was given the state of another model: its arrays do not fit")
        weights = self.devices.place_state(jax.tree.map(jnp.copy, weights))
        self._advance(replace(self.state, **weights))

    def _advance(self, state: TrainState) -> None:
        """For the loop: the state is now this one."""
        self._state = state


def weights_of(state: TrainState) -> dict[str, Any]:
    """What `Run.load_weights` takes over: all that the network and the loss have learned, by its name."""
    return {name: getattr(state, name) for name in _WEIGHTS}
