"""Scores over the height thresholds, and over the epochs."""

from collections.abc import Callable, Mapping, Sequence
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
    """Loss, gap IoU and learning rate over the epochs of a training; of heights also their RMSE (m).

    Args:
        history: as `train` returns it.
    """
    from matplotlib.ticker import MaxNLocator

    panels = {"loss": {phase: history[f"{phase}_loss"] for phase in ("train", "val")}}
    panels["gap IoU"] = _both_phases(history, lambda metrics: metrics.get("iou", np.nan))
    if any("regression" in metrics for metrics in history["train_metrics"]):
        panels["height RMSE (m)"] = _both_phases(history, _rmse)
    panels["learning rate"] = {"lr": history["lr"]}
    figure = new_figure(3.7 * len(panels), 3.2)
    axes = figure.subplots(1, len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for label, values in lines.items():
            colour = {"train": "C0", "val": "C1", "lr": "C2"}[label]
            epochs = np.arange(1, len(values) + 1)
            axis.plot(epochs, values, "o-", markersize=3, label=label, color=colour)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    axes[-1].set(yscale="log")
    return figure


def _both_phases(
    history: Mapping[str, Sequence[Any]], value: Callable[[Mapping[str, Any]], float]
) -> dict[str, Sequence[float]]:
    return {phase: [value(m) for m in history[f"{phase}_metrics"]] for phase in ("train", "val")}


def _rmse(metrics: Mapping[str, Any]) -> float:
    return metrics.get("regression", {}).get("rmse", np.nan)


def _title(metric: str) -> str:
    return {"iou": "IoU", "f1": "F1"}.get(metric, metric)
