"""A model's scores beside those of what needs no training, on the same pixels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from forestgaps_jax.config import Config
from forestgaps_jax.data.tiles import Places
from forestgaps_jax.data.windows import Pair
from forestgaps_jax.inference.opened_tiles import opened_tiles
from forestgaps_jax.metrics import GapScores, merge_metrics, summarize_rows
from forestgaps_jax.types import Site

COLUMNS = ("iou", "f1", "precision", "recall")
"""Metrics in the table."""


def score_baselines(
    sites: Sequence[Site] | Sequence[Pair], places: Places, config: Config
) -> dict[str, dict[str, Any]]:
    """Score the grey opening and the answer "all is gap" on given tiles.

    The opening sees the whole site, not only the tile.

    Args:
        sites: rasters, in memory or on disk; of the latter a window is read at a time.
        places: site, first row and first column of each tile.
        config: ``tile_size`` and ``thresholds``.

    Returns:
        ``{"grey_opening": metrics, "all_gap": metrics}``, metrics as `evaluate` gives them, without what
        needs probabilities: loss and precision-recall curves.
    """
    tallies = {name: _Tally(config) for name in ("grey_opening", "all_gap")}
    for tile in opened_tiles(sites, places, config.tile_size):
        for group, threshold in enumerate(config.thresholds):
            truth = tile.chm < threshold
            tallies["grey_opening"].add(tile.opening < threshold, truth, tile.valid, group)
            tallies["all_gap"].add(np.ones_like(truth), truth, tile.valid, group)
    return {name: tally.metrics(len(places)) for name, tally in tallies.items()}


class _Tally:
    """What a predictor's decisions add up to over tiles."""

    def __init__(self, config: Config):
        self.thresholds = config.thresholds
        self.rows = np.zeros((len(config.thresholds), 4), np.int64)
        self.gaps = GapScores(config.boundary_tolerance) if config.gap_scores else None

    def add(self, predicted: np.ndarray, truth: np.ndarray, known: np.ndarray, group: int) -> None:
        self.rows[group] += _confusion(predicted, truth, known)
        if self.gaps is not None:
            self.gaps.update(predicted[None], truth[None], known[None], np.array([group]))

    def metrics(self, tiles: int) -> dict[str, Any]:
        metrics = summarize_rows(self.rows, self.thresholds, np.full(len(self.thresholds), tiles))
        return merge_metrics(metrics, self.gaps.compute(self.thresholds) if self.gaps else {})


def mean_iou_over_thresholds(metrics: Mapping[str, Any]) -> float:
    """Mean gap IoU over the thresholds where it is defined; NaN where it is nowhere."""
    ious = [row["iou"] for row in metrics["threshold_metrics"].values() if not math.isnan(row["iou"])]
    return sum(ious) / len(ious) if ious else math.nan


def format_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores of several predictors per threshold, as lines of text.

    Args:
        scores: metrics by the predictor's name, as `evaluate` and `score_baselines` give them. Errors of
            predicted heights, metres, are in a line below.
    """
    first = next(iter(scores.values()))["threshold_metrics"]
    width = 7 * len(COLUMNS)
    lines = [
        "".join([" " * 16, *(f"   {name.replace('_', ' '):<{width - 1}}" for name in scores)]),
        "".join([" height     gaps ", *(f"{'IoU':>8}{'F1':>7}{'prec.':>7}{'recall':>7} " for _ in scores)]),
    ]
    for threshold in first:
        cells = [f"{threshold:5g} m {first[threshold]['gap_proportion']:8.1%} "]
        for metrics in scores.values():
            values = [metrics["threshold_metrics"][threshold][column] for column in COLUMNS]
            cells.append(" " + "".join(f"{value:7.3f}" for value in values) + " ")
        lines.append("".join(cells))
    means = [f" {mean_iou_over_thresholds(metrics):7.3f}{'':{width - 6}}" for metrics in scores.values()]
    lines.append("".join([" mean IoU       ", *means]).rstrip())
    for label, name in (("outline F1", "boundary_f1"), ("object F1", "object_f1")):
        values = [metrics.get(name) for metrics in scores.values()]
        if None not in values:
            cells = [f" {value:7.3f}{'':{width - 6}}" for value in values]
            lines.append("".join([f" {label:<15}", *cells]).rstrip())
    if any("regression" in metrics for metrics in scores.values()):
        cells = [f" {_height_errors(metrics):<{width}} " for metrics in scores.values()]
        lines.append("".join([f" {'heights (m)':<15}", *cells]).rstrip())
    return "\n".join(lines)


def _height_errors(metrics: Mapping[str, Any]) -> str:
    if "regression" not in metrics:
        return ""
    return "RMSE {rmse:.2f}  MAE {mae:.2f}  R2 {r2:.2f}".format(**metrics["regression"])


def _confusion(
    predicted: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]
) -> Int[np.ndarray, "4"]:
    cells = predicted & truth, predicted & ~truth, ~predicted & truth, ~predicted & ~truth
    return np.array([np.count_nonzero(cell & valid) for cell in cells])
