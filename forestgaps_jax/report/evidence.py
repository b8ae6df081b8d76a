"""The ground of a run, and what its network says on the part that was kept for the test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from forestgaps_jax.data.sources import load_sites
from forestgaps_jax.data.tiles import Split, split_blocks
from forestgaps_jax.inference.comparison import score_baselines
from forestgaps_jax.inference.loading import load_run
from forestgaps_jax.metrics import summarize_rows
from forestgaps_jax.report.examination import Examination, Tile, examine, predict_tiles
from forestgaps_jax.report.record import RunRecord
from forestgaps_jax.state import TrainState
from forestgaps_jax.types import Site

_T = TypeVar("_T")
_SHOWN = 6
_AGREEMENT = 0.01  # of IoU: what another device or version may change


class Shown(NamedTuple):
    """A tile to show; its threshold and itself as places in their lists."""

    threshold_index: int
    tile_index: int
    tile: Tile


@dataclass(frozen=True)
class Evidence:
    """What could be found out; None where it could not, and ``missing`` says why.

    Attributes:
        sites: rasters.
        split: tiles of training, validation and test.
        examination: the answers on the test tiles.
        spread: tiles spread evenly over the test ground, thresholds in turn.
        worst: the tiles with the largest share of wrong pixels, each at its worst threshold.
        scores: metrics by predictor, of the test tiles.
        missing: a sentence each.
    """

    sites: Sequence[Site] | None = None
    split: Split | None = None
    examination: Examination | None = None
    spread: list[Shown] = field(default_factory=list)
    worst: list[Shown] = field(default_factory=list)
    scores: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)


def gather(record: RunRecord, checkpoint: Literal["best", "last"] = "best") -> Evidence:
    """Read the sites again and predict the test tiles; where that cannot be, say why."""
    missing: list[str] = []
    config = record.config
    if config.stream == "always":
        missing.append("The run streamed its rasters, which are larger than memory, so there is no map.")
        return Evidence(scores=record.scores, missing=missing)
    sites = _try(lambda: load_sites(config), "The sites cannot be read again, so there is no map", missing)
    if sites is None:
        return Evidence(scores=record.scores, missing=missing)
    split = _try(lambda: split_blocks(sites, config), "The sites cannot be split as before", missing)
    if split is None:
        return Evidence(sites, scores=record.scores, missing=missing)
    if not len(split.test):
        missing.append("The run kept no test tiles (test_fraction = 0): nothing is measured on new ground.")
        return Evidence(sites, split, scores=record.scores, missing=missing)
    loaded = _try(
        lambda: load_run(record.folder, checkpoint), "There is no network to ask, so there is no map", missing
    )
    if loaded is None:
        return Evidence(sites, split, scores=record.scores, missing=missing)
    return _ask(loaded[0], record, sites, split, missing)


def _ask(
    state: TrainState, record: RunRecord, sites: Sequence[Site], split: Split, missing: list[str]
) -> Evidence:
    """What the network says on the test tiles."""
    config, places = record.config, split.test
    examination = examine(state, config, sites, places)

    def show(chosen: tuple[np.ndarray, np.ndarray]) -> list[Shown]:
        rows, tiles = chosen
        heights = [config.thresholds[row] for row in rows]
        predicted = predict_tiles(state, config, sites, places[tiles], heights)
        return [Shown(int(row), int(i), tile) for row, i, tile in zip(rows, tiles, predicted, strict=True)]

    spread, worst = show(_spread_tiles(examination)), show(worst_tiles(examination))
    scores = _scores(record, examination, missing)
    return Evidence(sites, split, examination, spread, worst, scores, missing)


def worst_tiles(examination: Examination, count: int = _SHOWN) -> tuple[np.ndarray, np.ndarray]:
    """Threshold and tile (as places in their lists) with the most wrong pixels in a known one.

    A tile comes once, at its worst threshold; one without a wrong pixel does not come.
    """
    known = examination.model.sum(axis=-1)
    wrong = examination.model[..., 1] + examination.model[..., 2]
    share = np.divide(wrong, known, out=np.zeros(known.shape), where=known > 0)
    order = np.argsort(-share.max(axis=0), kind="stable")[:count]
    tiles = order[share.max(axis=0)[order] > 0]
    return share.argmax(axis=0)[tiles], tiles


def _spread_tiles(examination: Examination) -> tuple[np.ndarray, np.ndarray]:
    count = min(_SHOWN, len(examination.places))
    tiles = np.linspace(0, len(examination.places) - 1, count).round().astype(int)
    return np.arange(count) % len(examination.thresholds), tiles


def _scores(record: RunRecord, examination: Examination, missing: list[str]) -> dict[str, Any] | None:
    """The run's own scores, or new ones where it has none; tells where both do not agree."""
    samples = np.full(len(examination.thresholds), len(examination.places))
    counted = summarize_rows(examination.model.sum(axis=1), examination.thresholds, samples)
    if record.scores is None:
        missing.append("The run holds no test scores: those below were counted anew for this page.")
        baselines = score_baselines(examination.sites, examination.places, record.config)
        return {"model": counted, **baselines}
    recorded = record.scores["model"]["iou"]
    if not abs(recorded - counted["iou"]) <= _AGREEMENT:
        missing.append(
            f"Asked again, the network has an IoU of {counted['iou']:.3f} on the test tiles, while the run "
            f"recorded {recorded:.3f}: have the rasters, the checkpoint or the library changed since?"
        )
    return record.scores


def _try(read: Callable[[], _T], what: str, missing: list[str]) -> _T | None:
    try:
        return read()
    except (OSError, ValueError) as error:
        missing.append(f"{what}: {error}.")
        return None
