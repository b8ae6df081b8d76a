"""Hooks around the training loop."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from forestgaps_jax.config import Config
from forestgaps_jax.state import TrainState
from forestgaps_jax.types import Data


@dataclass
class Run:
    """A training as its callbacks see it.

    A callback reads it, and asks through its methods for what shall happen.

    Attributes:
        config: the settings.
        state: the state after the latest step. Read it, do not keep its arrays: the next step takes them.
        steps_per_epoch: training batches in an epoch.
        data: the sources; None in a bare `evaluate`.
        history: what `train` will return.
        folder: the run folder; None for a run without a name, which writes nothing.
        events: TensorBoard's writer; None where there is none.
        stop_reason: why the training is to end; None while it goes on.
        save_requested: whether a checkpoint is to be written after the current step.
    """

    config: Config
    state: TrainState
    steps_per_epoch: int
    data: Data | None = None
    history: dict[str, list[Any]] = field(default_factory=dict)
    folder: Path | None = None
    events: Any = None
    stop_reason: str | None = None
    save_requested: bool = False

    def stop(self, reason: str) -> None:
        """Ask the loop to end after the current step."""
        self.stop_reason = reason

    def save(self) -> None:
        """Ask for a checkpoint after the current step."""
        self.save_requested = True

    def load_weights(self, state: TrainState) -> None:
        """Copy the weights and statistics of another moment; steps and optimizer stay those of now.

        Raises:
            ValueError: the state is of another model.
        """
        weights, own = _weights(state), _weights(self.state)
        if jax.tree.structure(weights) != jax.tree.structure(own) or jax.tree.leaves(
            jax.tree.map(jnp.shape, weights)
        ) != jax.tree.leaves(jax.tree.map(jnp.shape, own)):
            raise ValueError("load_weights was given the state of another model: its arrays do not fit")
        self.state = replace(self.state, **jax.tree.map(jnp.copy, weights))


def _weights(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("params", "model_state", "ema_params")}


def new_run_folder(config: Config) -> Path:
    """Make ``runs_dir/name``, or the first of ``name-2``, ``name-3``, ... that does not exist.

    So no run ever mixes with, or writes over, another; not even one that starts at the same moment.
    """
    folder = Path(config.runs_dir) / config.name
    for candidate in chain([folder], (folder.with_name(f"{config.name}-{n}") for n in count(2))):
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("there is always a next number")


class Callback:
    """Override the events that you need; ``self.run`` is the `Run`.

    Values in ``logs["metrics"]`` of batch events are still on the device: turning one into a float waits
    for its step to finish.

    >>> class Stopper(Callback):
    ...     def on_epoch_end(self, epoch, logs=None):
    ...         if logs["val_metrics"]["iou"] > 0.9:
    ...             self.run.stop("good enough")
    """

    run: Run

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Once, before the first epoch.

        logs: config, model (as it was before, None for one of another library) and model_summary (a text).
        """

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Once, after the last epoch. logs: history, best_metrics, stop_reason."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Before an epoch, counted from 0."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """After an epoch and its validation.

        logs: train_metrics, val_metrics (empty without validation), lr, improved, epoch_time (s).
        """

    def on_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Before a training step, counted from 0 within the epoch. logs: epoch."""

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """After a training step was handed to the device. logs: epoch, metrics, batch_size."""

    def on_validation_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Before the validation of an epoch."""

    def on_validation_end(self, logs: dict[str, Any] | None = None) -> None:
        """After the validation of an epoch. logs: metrics."""

    def on_validation_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Before a validation batch."""

    def on_validation_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """After a validation batch was handed to the device. logs: metrics."""

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Before a test."""

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """After a test. logs: metrics."""

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Before a test batch."""

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """After a test batch was handed to the device. logs: metrics."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""Names of all events."""


class CallbackList:
    """Fires events on several callbacks in their order.

    Raises:
        TypeError: something is not a `Callback`, has a method ``on_...`` that is no event, or an event with
            arguments of its own; the nearest name and the right arguments are told.
    """

    def __init__(self, callbacks: Iterable[Callback], run: Run | None = None):
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            _check(callback)
            if run is not None:
                callback.run = run

    def fire(self, event: str, *position: int, **logs: Any) -> None:
        """Call ``event(*position, logs)`` on each."""
        for callback in self.callbacks:
            getattr(callback, event)(*position, logs)


def _check(callback: Any) -> None:
    kind = type(callback)
    if not isinstance(callback, Callback):
        raise TypeError(f"{callback!r} is no callback: derive it from forestgaps_jax.callbacks.Callback")
    for name in dir(kind):
        if name.startswith("on_"):
            check_event(f"{kind.__name__}.{name}", name)
    for event in EVENTS:
        check_arguments(f"{kind.__name__}.{event}", getattr(kind, event), event, bound=False)


def check_event(owner: str, name: str) -> None:
    """Refuse the name of no event.

    Raises:
        TypeError: names the ``owner`` and the nearest event.
    """
    if name not in EVENTS:
        close = difflib.get_close_matches(name, EVENTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(EVENTS)}"
        raise TypeError(f"{owner} is no event; {hint}")


def check_arguments(owner: str, function: Callable[..., Any], event: str, bound: bool) -> None:
    """Refuse a function that cannot be called as the event is; a ``bound`` one takes no ``self``.

    Raises:
        TypeError: names the ``owner`` and the arguments of the event.
    """
    wanted = tuple(inspect.signature(getattr(Callback, event)).parameters)[bound:]
    try:
        inspect.signature(function).bind(*wanted)
    except TypeError:
        raise TypeError(f"{owner} must take {wanted}") from None
