"""A callback without a class."""

from typing import Any

from forestgaps_jax.callbacks.base import Callback, check_event, check_function


class LambdaCallback(Callback):
    """Calls a function at each event that is named.

    Args:
        events: functions by the names of their events; they take what the events of `Callback` take, without
            ``self``, by position.

    Raises:
        TypeError: no such event, or a function that takes other arguments or is ``async``.

    >>> ious = []
    >>> keep = LambdaCallback(on_epoch_end=lambda epoch, logs: ious.append(logs["val_metrics"]["iou"]))
    >>> keep.on_epoch_end(0, {"val_metrics": {"iou": 0.5}})
    >>> ious
    [0.5]
    """

    def __init__(self, **events: Any):
        for event, function in events.items():
            owner = f"LambdaCallback({event}=...)"
            check_event(owner, event)
            if not callable(function):
                raise TypeError(f"{owner} is {function!r}: must be a function")
            check_function(owner, function, event, bound=True)
            setattr(self, event, function)
