"""Hooks around the training loop."""

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from forestgaps_jax.callbacks.run import Run
from forestgaps_jax.parallel import is_main


class Callback:
    """Override the events that you need; ``self.run`` is the `Run`.

    Values in ``logs["metrics"]`` of batch events are still on the device: turning one into a float waits
    for its step to finish. The logs of `on_epoch_end`, `on_validation_end` and `on_test_end` are each
    callback's own copy.

    >>> class Stopper(Callback):
    ...     def on_epoch_end(self, epoch, logs=None):
    ...         if logs["val_metrics"]["iou"] > 0.9:
    ...             self.run.stop("good enough")
    """

    run: Run
    main_only = False
    """Of several processes, only the main one has it. What it does must not need the others: it looks at
    `forestgaps_jax.parallel.on_one_device` of the state, and its `state_dict` is not kept. All others must
    come to the same in each process."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint shall keep of this callback: dictionaries and lists of arrays and numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, as NumPy arrays, where a training goes on."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Once, before the first epoch.

        logs: config, model (as it was before, None for one of another library), model_summary (a text) and
        threshold_weights (by threshold; None where the loss has none).
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
        """After a training step was handed to the device.

        logs: epoch, metrics, batch_size, and compilation (of the step, where its first call compiled it: a
        `forestgaps_jax.compilation.Compilation`; else None).
        """

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

_COPIED = ("on_epoch_end", "on_validation_end", "on_test_end")


class CallbackList:
    """Fires events on several callbacks in their order.

    Raises:
        TypeError: something is not a `Callback`, has a method ``on_...`` that is no event, or an event with
            arguments of its own or that is ``async``; the nearest name and the right arguments are told.
    """

    def __init__(self, callbacks: Iterable[Callback], run: Run | None = None):
        given = list(callbacks)
        for callback in given:
            _check(callback)
        self.callbacks = [callback for callback in given if is_main() or not callback.main_only]
        for callback in self.callbacks:
            if run is not None:
                callback.run = run
        if run is not None:
            run.callbacks = self.callbacks

    def fire(self, event: str, *position: int, **logs: Any) -> None:
        """Call ``event(*position, logs)`` on each; the end of a training on all, whichever of them raises."""
        errors: list[Exception] = []
        for callback in self.callbacks:
            try:
                getattr(callback, event)(*position, copy.deepcopy(logs) if event in _COPIED else logs)
            except Exception as error:
                if event != "on_train_end":
                    raise
                errors.append(error)
        if errors:
            raise errors[0]


def _check(callback: Any) -> None:
    kind = type(callback)
    if not isinstance(callback, Callback):
        raise TypeError(f"{callback!r} is no callback: derive it from forestgaps_jax.callbacks.Callback")
    for name in dir(kind):
        if name.startswith("on_"):
            check_event(f"{kind.__name__}.{name}", name)
    for event in EVENTS:
        check_function(f"{kind.__name__}.{event}", getattr(kind, event), event, bound=False)


def check_event(owner: str, name: str) -> None:
    """Refuse the name of no event.

    Raises:
        TypeError: names the ``owner`` and the nearest event.
    """
    if name not in EVENTS:
        close = difflib.get_close_matches(name, EVENTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(EVENTS)}"
        raise TypeError(f"{owner} is no event; {hint}")


def check_function(owner: str, function: Callable[..., Any], event: str, bound: bool) -> None:
    """Refuse a function that cannot be called as the event is; a ``bound`` one takes no ``self``.

    One whose body such a call would not run, a coroutine or a generator, is refused too.

    Raises:
        TypeError: names the ``owner`` and the arguments of the event.
    """
    lazy = inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction
    if any(is_lazy(function) for is_lazy in lazy):
        raise TypeError(f"{owner} must be a plain function: nobody awaits or iterates what it gives back")
    wanted = tuple(inspect.signature(getattr(Callback, event)).parameters)[bound:]
    try:
        inspect.signature(function).bind(*wanted)
    except TypeError:
        raise TypeError(f"{owner} must take {wanted}") from None
