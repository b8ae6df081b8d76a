"""Which epoch is the best so far."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from forestgaps_jax.metrics import confusion_metrics

_MINIMISED = ("loss", "error_rate")


class Monitor:
    """Follows one metric of training or validation over the epochs; NaN never improves.

    Args:
        name: ``val_`` or ``train_`` and the name of a metric, such as ``val_iou`` or ``val_loss``.

    Attributes:
        mode: ``"min"`` for losses and ``error_rate``, ``"max"`` for all others.
        best: the best value; None before the first.

    >>> monitor = Monitor("val_loss")
    >>> [monitor.update({"val_metrics": {"loss": loss}}) for loss in (0.5, 0.7, 0.4)]
    [True, False, True]
    """

    def __init__(self, name: str):
        self.phase, _, self.metric = name.partition("_")
        known = ["loss", *confusion_metrics([1, 1, 1, 1])]
        if self.phase not in ("val", "train") or self.metric not in known:
            raise ValueError(
                f"monitor_metric = {name!r}: must be val_ or train_ and one of {', '.join(known)}"
            )
        self.name = name
        self.mode: Literal["min", "max"] = "min" if self.metric in _MINIMISED else "max"
        self.best: float | None = None
        self._best_score = -math.inf

    def value(self, logs: Mapping[str, Any]) -> float:
        """The metric out of the logs of an epoch; NaN without validation."""
        return logs[f"{self.phase}_metrics"].get(self.metric, math.nan)

    def score(self, logs: Mapping[str, Any]) -> float:
        """The value, with its sign turned where less is better."""
        return self.value(logs) * (-1 if self.mode == "min" else 1)

    def update(self, logs: Mapping[str, Any]) -> bool:
        """Take an epoch in; True where it is the best so far."""
        score = self.score(logs)
        if math.isnan(score) or score <= self._best_score:
            return False
        self.best, self._best_score = self.value(logs), score
        return True
