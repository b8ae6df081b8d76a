"""Scores over the height thresholds, and over the epochs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forestgaps_jax.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_thresholds(
    scores: Mapping[str, Mapping[str, Any]], names: Sequence[str] = ("iou", "f1")
) -> "Figure":
    """Metrics over the height thresholds, a line for each predictor.

    Args:
        scores: metrics by the predictor's name, as `evaluate` gives them.
        names: a panel for each metric.
    """
    figure = new_figure(4.2 * len(names), 3.4)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, metric in zip(axes, names, strict=True):
        for label, metrics in scores.items():
            rows = metrics["threshold_metrics"]
            axis.plot(list(rows), [row[metric] for row in rows.values()], "o-", label=label.replace("_", " "))
        axis.set(xlabel="height threshold (m)", title=f"gap {_title(metric)}", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    return figure


def plot_history(history: Mapping[str, Sequence[Any]]) -> "Figure":
    """Loss, gap IoU and learning rate over the epochs of a training."""
    figure = new_figure(11.0, 3.2)
    loss, iou, rate = figure.subplots(1, 3)
    epochs = np.arange(1, len(history["lr"]) + 1)
    for phase in ("train", "val"):
        loss.plot(epochs, history[f"{phase}_loss"], "o-", markersize=3, label=phase)
        values = [metrics.get("iou", np.nan) for metrics in history[f"{phase}_metrics"]]
        iou.plot(epochs, values, "o-", markersize=3, label=phase)
    rate.plot(epochs, history["lr"], "o-", markersize=3, color="C2")
    rate.set(yscale="log")
    for axis, title in ((loss, "loss"), (iou, "gap IoU"), (rate, "learning rate")):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    loss.legend(frameon=False)
    return figure


def _title(metric: str) -> str:
    return {"iou": "IoU", "f1": "F1"}.get(metric, metric)
