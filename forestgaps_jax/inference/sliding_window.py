"""Rasters larger than a tile: overlapping windows, blended without a seam, strip by strip."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from forestgaps_jax.inference.passes import check_samples, predict_windows
from forestgaps_jax.inference.windows import Windows, lay_windows
from forestgaps_jax.state import TrainState

Read = Callable[[int, int], Float32[np.ndarray, "rows width"]]
"""Surface heights from a first row to a last (exclusive), metres; NaN where not known."""


class Strip(NamedTuple):
    """Finished rows of a map.

    Attributes:
        first_row: the first of them.
        dsm: surface height, metres.
        probability: of gap, thresholds rising; NaN where the surface is not known.
        deviation: standard deviation over random passes, or None.
    """

    first_row: int
    dsm: Float32[np.ndarray, "rows width"]
    probability: Float32[np.ndarray, "thresholds rows width"]
    deviation: Float32[np.ndarray, "thresholds rows width"] | None


def predicted_strips(
    state: TrainState,
    read: Read,
    shape: tuple[int, int],
    thresholds: Float32[np.ndarray, " thresholds"],
    windows: Windows,
    resolution: float | None = None,
    advance: Callable[[int], Any] = lambda count: None,
) -> Iterator[Strip]:
    """Map a raster from the top to the bottom, in memory that grows with its width but not with its height.

    Args:
        state: what predicts.
        read: gives rows of the surface; each is asked for once, in order.
        shape: rows and columns of the raster.
        thresholds: canopy heights, metres, rising.
        windows: how to cut.
        resolution: ground size of a pixel's side, metres.
        advance: called with the number of windows that are done, of `count_windows`.

    Raises:
        ValueError: a window that the network does not take, or random passes where nothing is random.
    """
    check_samples(state, windows.samples)
    size, (height, width) = windows.tile_size, shape
    rows, columns = (lay_windows(side, size, windows.overlap) for side in shape)
    batch_size = min(windows.batch_size, len(rows.starts) * len(columns.starts))
    predict = _compiled(state, thresholds, replace(windows, batch_size=batch_size), resolution)
    surface = np.full((size, max(width, size)), np.nan, np.float32)
    maps = np.zeros((2 if windows.samples else 1, len(thresholds), *surface.shape))
    read_to = 0
    for number, (start, weight) in enumerate(zip(rows.starts, rows.weights, strict=True)):
        end = min(start + size, height)
        surface[read_to - start : end - start, :width] = read(int(read_to), int(end))
        read_to = end
        for column, values in _row_of_windows(predict, surface, columns.starts, batch_size):
            across = slice(columns.starts[column], columns.starts[column] + size)
            maps[..., across] += weight[:, None] * columns.weights[column] * values
        advance(len(columns.starts))
        finished = (height if start == rows.starts[-1] else rows.starts[number + 1]) - start
        yield _strip(int(start), surface[:finished, :width], maps[:, :, :finished, :width])
        surface[:-finished], surface[-finished:] = surface[finished:].copy(), np.nan
        maps[:, :, :-finished], maps[:, :, -finished:] = maps[:, :, finished:].copy(), 0.0


Predict = Callable[[list[np.ndarray]], tuple[Any, ...]]


def _compiled(
    state: TrainState, thresholds: np.ndarray, windows: Windows, resolution: float | None
) -> Predict:
    """What gives the maps of up to a batch of windows, still on the device; always one shape."""
    size, calls = windows.tile_size, count()
    pixel = None if resolution is None else np.full(windows.batch_size, resolution, np.float32)

    def predict(tiles: list[np.ndarray]) -> tuple[Any, ...]:
        batch = np.full((windows.batch_size, size, size, 1), np.nan, np.float32)
        batch[: len(tiles), ..., 0] = tiles
        key = jax.random.fold_in(state.rng, next(calls)) if windows.samples else state.rng
        options = {"flips": windows.flips, "samples": windows.samples}
        maps = predict_windows(state, batch, thresholds, pixel, key, **options)
        return tuple(part for part in maps if part is not None)

    return predict


def _row_of_windows(
    predict: Predict, surface: np.ndarray, starts: np.ndarray, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Number and maps of each window with a known pixel; one batch is computed while another is blended."""
    size = len(surface)
    tiles = {number: surface[:, start : start + size] for number, start in enumerate(starts)}
    seen = [number for number, tile in tiles.items() if np.isfinite(tile).any()]
    in_flight: deque[tuple[list[int], tuple[Any, ...]]] = deque()

    def fetch() -> Iterator[tuple[int, np.ndarray]]:
        numbers, maps = in_flight.popleft()
        yield from zip(numbers, np.stack([np.asarray(part) for part in maps], axis=1), strict=False)

    for first in range(0, len(seen), batch_size):
        numbers = seen[first : first + batch_size]
        in_flight.append((numbers, predict([tiles[number] for number in numbers])))
        if len(in_flight) > 1:
            yield from fetch()
    while in_flight:
        yield from fetch()


def _strip(first_row: int, surface: np.ndarray, maps: np.ndarray) -> Strip:
    maps = np.where(np.isfinite(surface), maps, np.nan).astype(np.float32)
    return Strip(first_row, surface.copy(), maps[0], maps[1] if len(maps) > 1 else None)
