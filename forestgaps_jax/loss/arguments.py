"""The weights of a loss apart from the rest of it: compiled functions take them as arguments."""

from dataclasses import fields, is_dataclass
from typing import Any

from forestgaps_jax.loss.base import Loss

Weights = dict[str, Any]
"""Numbers by the name of the setting, tuples of them, and the same of a loss within; a pytree."""


def split_weights(loss: Loss) -> tuple[Loss, Weights]:
    """A loss without its weights, which can be hashed, and these; `join_weights` puts them together again.

    Losses that differ in weights alone are equal without them, so one compiled function serves all of them.
    What a loss names as ``arguments`` are its weights; a function, or a loss that names none, is left whole.

    >>> from forestgaps_jax.loss import FocalLoss
    >>> split_weights(FocalLoss(alpha=0.3))[1]
    {'alpha': 0.3}
    >>> split_weights(FocalLoss(alpha=0.3))[0] == split_weights(FocalLoss(alpha=0.8))[0]
    True
    """
    weights: Weights = {}
    for name in getattr(loss, "arguments", ()):
        value = getattr(loss, name)
        if is_dataclass(value):
            value, weights[name] = split_weights(value)  # type: ignore[arg-type]  # may be a type to it
            loss = _with(loss, {name: value})
        elif value is not None:
            weights[name] = value
            loss = _with(loss, {name: "an argument"})
    return loss, weights


def join_weights(loss: Loss, weights: Weights) -> Loss:
    """A loss with weights that may be arrays, also of a function that is being compiled."""
    parts = {
        name: join_weights(getattr(loss, name), value) if isinstance(value, dict) else value
        for name, value in weights.items()
    }
    return _with(loss, parts) if parts else loss


def _with(loss: Any, changed: dict[str, Any]) -> Any:
    """A copy with other fields, which are not checked: they are no plain numbers."""
    copy = object.__new__(type(loss))
    for field in fields(loss):
        object.__setattr__(copy, field.name, changed.get(field.name, getattr(loss, field.name)))
    return copy
