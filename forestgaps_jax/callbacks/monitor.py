"""Which epoch is the best so far."""

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from forestgaps_jax.config import Config
from forestgaps_jax.metrics import confusion_metrics
from forestgaps_jax.optimization import metric_mode

_SCORES = (*confusion_metrics([1, 1, 1, 1]), "pr_auc")
_REGRESSION = ("mse", "rmse", "mae", "r2")  # not the bias: of it neither less nor more is better
_KNOWN = ("loss", *_SCORES, *_REGRESSION)
_NAME = re.compile(r"(?P<phase>val|train)_(?P<metric>.+?)(_(?P<threshold>\d+(\.\d+)?)m)?")


class Monitor:
    """Follows one metric of training or validation over the epochs.

    A value that is not finite, such as an undefined metric, never improves.

    Args:
        name: ``val_`` or ``train_`` and a metric, such as ``val_loss``, ``val_iou``, ``train_rmse``; with a
            height behind it that threshold's own, such as ``val_iou_10m`` or ``val_recall_2.5m``.
        mode: whether less (``"min"``) or more (``"max"``) is better; ``"auto"``: less for losses,
            ``error_rate``, ``mse``, ``rmse`` and ``mae``, more for all others.
        min_delta: least change that counts as improvement.

    Attributes:
        mode: ``"min"`` or ``"max"``.
        best: the best value; None before the first.

    Raises:
        ValueError: no such metric or mode.

    >>> monitor = Monitor("val_loss")
    >>> [monitor.update({"val_metrics": {"loss": loss}}) for loss in (0.5, 0.7, 0.4)]
    [True, False, True]
    >>> Monitor("val_iou_10m").value({"val_metrics": {"threshold_metrics": {10.0: {"iou": 0.6}}}})
    0.6
    """

    def __init__(self, name: str, mode: str = "auto", min_delta: float = 0.0):
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode = {mode!r}: must be 'auto', 'min' or 'max'")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta = {min_delta!r}: must be 0 or more")
        self.phase, self.metric, self.threshold = _parse(name)
        self.name, self.min_delta = name, min_delta
        minimised = (metric_mode(self.metric) if mode == "auto" else mode) == "min"
        self.mode: Literal["min", "max"] = "min" if minimised else "max"
        self.best: float | None = None

    def check(self, config: Config, validated: bool = True, heights: bool | None = None) -> None:
        """Refuse what a training will never measure.

        Args:
            config: its settings.
            validated: whether there is validation.
            heights: whether the network predicts heights; None where that is not known.

        Raises:
            ValueError: a validation metric where nothing is validated, ``pr_auc`` of training or of heights,
                an error in metres of gap probabilities, or a threshold that is not listed.
        """
        if self.phase == "val" and not validated:
            trained = "iou" if self.metric == "pr_auc" else self.name.removeprefix("val_")
            raise ValueError(
                f"{self.name} needs validation data: give data.val (on the command line --val-fraction above "
                f"0), or monitor a metric of training, such as 'train_{trained}'"
            )
        if self.metric == "pr_auc" and heights:
            raise ValueError(
                f"{self.name} is of gap probabilities, and this network predicts heights: "
                f"monitor '{self.phase}_rmse' or '{self.phase}_iou'"
            )
        if self.metric == "pr_auc" and self.phase == "train":
            raise ValueError(
                f"{self.name}: pr_auc is measured in validation only: monitor 'val_pr_auc' or 'train_iou'"
            )
        if self.metric in _REGRESSION and heights is False:
            raise ValueError(
                f"{self.name} is of predicted heights, and this network predicts gaps: "
                f"monitor '{self.phase}_iou' or '{self.phase}_loss'"
            )
        if self.threshold is not None and self.threshold not in config.thresholds:
            listed = ", ".join(f"{t:g}" for t in config.thresholds)
            raise ValueError(f"{self.name}: {self.threshold:g} m is not in thresholds = {listed}")

    def value(self, logs: Mapping[str, Any]) -> float:
        """The metric out of the logs of an epoch; NaN where it was not measured."""
        metrics = logs[f"{self.phase}_metrics"]
        if self.threshold is not None:
            metrics = metrics.get("threshold_metrics", {}).get(self.threshold, {})
        elif self.metric in _REGRESSION:
            metrics = metrics.get("regression", {})
        return metrics.get(self.metric, math.nan)

    def score(self, logs: Mapping[str, Any]) -> float:
        """The value, with its sign turned where less is better."""
        return self.value(logs) * self._sign

    def update(self, logs: Mapping[str, Any]) -> bool:
        """Take an epoch in; True where it is the best so far."""
        value = self.value(logs)
        if not math.isfinite(value):
            return False
        if self.best is not None and self._sign * (value - self.best) <= self.min_delta:
            return False
        self.best = value
        return True

    @property
    def _sign(self) -> int:
        return -1 if self.mode == "min" else 1


def _parse(name: str) -> tuple[str, str, float | None]:
    match = _NAME.fullmatch(name)
    metric, threshold = (match["metric"], match["threshold"]) if match else ("", None)
    if match is None or metric not in (_KNOWN if threshold is None else _SCORES):
        known = [f"{phase}_{metric}" for phase in ("val", "train") for metric in _KNOWN]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"monitored metric {name!r}: {hint}must be val_ or train_ and one of {', '.join(_KNOWN)}; "
            f"with a height behind it, such as val_iou_10m, one of {', '.join(_SCORES)}"
        )
    return match["phase"], metric, None if threshold is None else float(threshold)
