"""What a network answers on its test tiles, tile by tile, beside the truth and the grey opening."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from forestgaps_jax.config import Config
from forestgaps_jax.data.tiles import Places
from forestgaps_jax.inference import opening_baseline
from forestgaps_jax.models.registry import REGRESSION_LOSSES
from forestgaps_jax.report.reliability import Reliability, reliability
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import predict_step
from forestgaps_jax.types import Site


@dataclass(frozen=True, eq=False)
class Examination:
    """The answers at every threshold.

    Attributes:
        sites: rasters.
        places: site, first row and first column of each tile.
        size: side of a tile, pixels.
        thresholds: heights, metres.
        predicted: True where gap is predicted.
        model: tp, fp, fn, tn of each tile.
        opening: the same of the grey opening.
        calibration: by threshold; None for a network of heights, which gives no probability.
    """

    sites: Sequence[Site]
    places: Places
    size: int
    thresholds: tuple[float, ...]
    predicted: Bool[np.ndarray, "thresholds tiles size size"]
    model: Int[np.ndarray, "thresholds tiles 4"]
    opening: Int[np.ndarray, "thresholds tiles 4"]
    calibration: list[Reliability] | None


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile at one threshold; ``probability`` is of booleans for a network of heights."""

    place: Int[np.ndarray, "3"]
    threshold: float
    dsm: Float[np.ndarray, "height width"]
    truth: Bool[np.ndarray, "height width"]
    valid: Bool[np.ndarray, "height width"]
    probability: Float[np.ndarray, "height width"] | Bool[np.ndarray, "height width"]


def examine(state: TrainState, config: Config, sites: Sequence[Site], places: Places) -> Examination:
    """Predict the tiles at every threshold, in batches of one shape.

    Args:
        state: what predicts.
        config: ``tile_size``, ``thresholds`` and ``batch_size``.
        sites: rasters.
        places: site, first row and first column of each tile; one at least.
    """
    count, size = len(places), config.tile_size
    opened = {
        int(i): opening_baseline(sites[i].dsm, sites[i].grid.resolution) for i in np.unique(places[:, 0])
    }
    predicted = np.zeros((len(config.thresholds), count, size, size), bool)
    model, opening = (np.zeros((len(config.thresholds), count, 4), np.int64) for _ in range(2))
    calibration: list[Reliability] = []
    for t, threshold in enumerate(config.thresholds):
        bins = []
        for i, tile in enumerate(predict_tiles(state, config, sites, places, [threshold] * count)):
            predicted[t, i] = tile.probability > 0.5
            model[t, i] = _cells(predicted[t, i], tile)
            opening[t, i] = _cells(_cut(opened[places[i, 0]], places[i], size) < threshold, tile)
            if tile.probability.dtype != bool:
                bins.append(reliability(tile.probability, tile.truth, tile.valid))
        if bins:
            calibration.append(sum(bins[1:], start=bins[0]))
    return Examination(sites, places, size, config.thresholds, predicted, model, opening, calibration or None)


def predict_tiles(
    state: TrainState, config: Config, sites: Sequence[Site], places: Places, thresholds: Sequence[float]
) -> Iterator[Tile]:
    """The tiles with what is predicted on them, each at its threshold (m), in batches of one shape."""
    size, batch, decided = config.tile_size, config.batch_size, config.loss_type in REGRESSION_LOSSES
    for start in range(0, len(places), batch):
        # The last batch is filled up with its last tile.
        chosen = np.minimum(np.arange(start, start + batch), len(places) - 1)
        dsm = np.stack([_cut(sites[places[i, 0]].dsm, places[i], size) for i in chosen])
        heights = np.array([thresholds[i] for i in chosen], np.float32)
        resolution = np.array([sites[places[i, 0]].grid.resolution for i in chosen], np.float32)
        answers = np.asarray(predict_step(state, dsm[..., None], heights, resolution))[..., 0]
        for i, surface, answer in zip(chosen[: len(places) - start], dsm, answers, strict=False):
            chm = _cut(sites[places[i, 0]].chm, places[i], size)
            yield Tile(
                place=places[i],
                threshold=thresholds[i],
                dsm=surface,
                truth=chm < thresholds[i],
                valid=np.isfinite(surface) & np.isfinite(chm),
                probability=answer > 0.5 if decided else answer,
            )


def _cut(raster: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    _, row, column = place
    return raster[row : row + size, column : column + size]


def _cells(predicted: np.ndarray, tile: Tile) -> list[int]:
    truth = tile.truth
    cells = predicted & truth, predicted & ~truth, ~predicted & truth, ~predicted & ~truth
    return [int(np.count_nonzero(cell & tile.valid)) for cell in cells]
