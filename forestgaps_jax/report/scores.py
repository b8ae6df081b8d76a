"""Scores as tables, and as lines over epochs and thresholds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from forestgaps_jax.figures.calibration import plot_reliability
from forestgaps_jax.figures.lines import plot_lines
from forestgaps_jax.metrics import confusion_matrix
from forestgaps_jax.report.examination import Examination
from forestgaps_jax.report.formats import height, number
from forestgaps_jax.report.pictures import inline_svg
from forestgaps_jax.report.verdict import NAMES

_COMPARED = (
    (("iou", "Gap IoU"), ("f1", "Gap F1")),
    (("boundary_f1", "Outline F1"), ("object_f1", "Object F1")),
)
"""Metrics in a table together; those that a run did not score are left out."""
_OWN = (
    ("precision", "Precision"), ("recall", "Recall"), ("mcc", "MCC"), ("pr_auc", "PR AUC"),
    ("best_cut", "Best cut"), ("best_cut_iou", "IoU there"),
)  # fmt: skip

_PHASES = {"train": "training", "val": "validation"}


class Cell(NamedTuple):
    """A number in a table, and whether it is the best of its row."""

    text: str
    best: bool = False


def score_tables(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Rows a threshold: the predictors side by side in what compares them; then the model alone."""
    predictors = [name for name in NAMES if name in scores]
    rows = {name: scores[name]["threshold_metrics"] for name in predictors}
    first = rows[predictors[0]]
    tables = []
    for group in _COMPARED:
        metrics = [(key, title) for key, title in group if all(key in row for row in first.values())]
        if metrics:
            body = [
                (height(t), first[t]["gap_proportion"], [_compare(rows, t, key) for key, _ in metrics])
                for t in first
            ]
            means = [_mean_cells(rows, key) for key, _ in metrics]
            tables.append({"titles": [title for _, title in metrics], "rows": body, "means": means})
    own = [(key, title) for key, title in _OWN if all(key in row for row in first.values())]
    return {
        "predictors": [NAMES[name] for name in predictors],
        "tables": tables,
        "own_titles": [title for _, title in own],
        "own": [(height(t), [number(row[key]) for key, _ in own]) for t, row in first.items()],
        "regression": scores["model"].get("regression"),
        "charts": _threshold_charts(scores, predictors),
    }


def best_cells(values: Sequence[float | None]) -> list[Cell]:
    """The values as text, the largest marked; none where only one is defined.

    >>> [cell.best for cell in best_cells([0.5, 0.7, math.nan])]
    [False, True, False]
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    top = number(max(known)) if len(known) > 1 else None
    return [Cell(number(value), top is not None and number(value) == top) for value in values]


def _compare(rows: Mapping[str, Any], threshold: float, key: str) -> list[Cell]:
    return best_cells([by_threshold[threshold].get(key) for by_threshold in rows.values()])


def _mean_cells(rows: Mapping[str, Any], key: str) -> list[Cell]:
    table = np.array([[row[key] for row in by_threshold.values()] for by_threshold in rows.values()], float)
    shared = np.isfinite(table).all(axis=0)
    return best_cells(table[:, shared].mean(axis=1).tolist() if shared.any() else [math.nan] * len(table))


def _threshold_charts(scores: Mapping[str, Any], predictors: Sequence[str]) -> list[str]:
    charts, heights = [], list(scores["model"]["threshold_metrics"])
    for key, title in (("iou", "gap IoU"), ("f1", "gap F1")):
        lines = {}
        for name in predictors:
            by_threshold = scores[name]["threshold_metrics"]
            lines[NAMES[name]] = (list(by_threshold), [row[key] for row in by_threshold.values()])
        axis: dict[str, Any] = {"xlabel": "height threshold (m)", "xticks": heights, "ylim": (0, 1.03)}
        figure = plot_lines(lines, title=title, **axis)
        charts.append(inline_svg(figure, f"by-height-{key}", f"{title} over the height thresholds"))
    return charts


def curves(history: Mapping[str, Any]) -> list[str]:
    """Loss, gap IoU and learning rate over the epochs; of heights also their RMSE."""
    epochs = np.arange(1, len(history["lr"]) + 1)
    panels: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("loss", {name: history[f"{phase}_loss"] for phase, name in _PHASES.items()}, {}),
        ("gap IoU", _by_phase(history, lambda metrics: metrics.get("iou")), {}),
    ]
    if any("regression" in metrics for metrics in history["train_metrics"]):
        rmse = _by_phase(history, lambda metrics: metrics.get("regression", {}).get("rmse"))
        panels.append(("height RMSE (m)", rmse, {}))
    panels.append(("learning rate", {"learning rate": history["lr"]}, {"yscale": "log"}))
    charts = []
    for number_, (title, lines, options) in enumerate(panels):
        points = {name: (epochs, np.array(values, float)) for name, values in lines.items()}
        shown = {name: xy for name, xy in points.items() if np.isfinite(xy[1]).any()}
        figure = plot_lines(shown, title=title, xlabel="epoch", whole=True, **options)
        charts.append(inline_svg(figure, f"curve-{number_}", f"{title} over {len(epochs)} epochs"))
    return charts


def _by_phase(history: Mapping[str, Any], value: Any) -> dict[str, list[Any]]:
    return {
        name: [value(metrics) for metrics in history[f"{phase}_metrics"]] for phase, name in _PHASES.items()
    }


def calibration(examination: Examination) -> dict[str, Any] | None:
    """A reliability diagram and the expected calibration error of each threshold."""
    if examination.calibration is None:
        return None
    rows = []
    for threshold, bins in zip(examination.thresholds, examination.calibration, strict=True):
        error = number(bins.expected_calibration_error)
        figure = plot_reliability(
            bins.mean_probability, bins.gap_share, bins.pixels, f"below {height(threshold)}"
        )
        label = f"reliability diagram of gaps below {height(threshold)}; expected calibration error {error}"
        rows.append(
            {
                "threshold": height(threshold),
                "error": error,
                "chart": inline_svg(figure, f"reliability-{len(rows)}", label),
                "bins": [
                    (f"{i / len(bins.pixels):.1f} to {(i + 1) / len(bins.pixels):.1f}", *values)
                    for i, values in enumerate(
                        zip(
                            bins.pixels.tolist(),
                            bins.mean_probability.tolist(),
                            bins.gap_share.tolist(),
                            strict=True,
                        )
                    )
                ],
            }
        )
    return {"rows": rows}


def confusion(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Right and wrong pixels of the model at each threshold, each with its share of the true class."""
    return [
        {"threshold": height(threshold), **confusion_matrix(_cells(row))}
        for threshold, row in scores["model"]["threshold_metrics"].items()
    ]


def _cells(row: Mapping[str, float]) -> np.ndarray:
    """The four counts again, which are whole numbers, out of the rates that follow from them."""
    pixels = round(row["n_pixels"])
    gaps = round(row["gap_proportion"] * pixels)
    tp = round(row["recall"] * gaps) if gaps else 0
    tn = round(row["specificity"] * (pixels - gaps)) if pixels > gaps else 0
    return np.array([tp, pixels - gaps - tn, gaps - tp, tn])
