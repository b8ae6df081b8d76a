"""Maps of rasters in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from forestgaps_jax.inference.progress import progress_bar
from forestgaps_jax.inference.strips import predicted_strips
from forestgaps_jax.inference.windows import Windows, count_windows
from forestgaps_jax.state import TrainState
from forestgaps_jax.types import SAME_THRESHOLD


def predict_array(
    state: TrainState,
    dsm: Any,
    thresholds: Sequence[float],
    *,
    resolution: float | None = None,
    tile_size: int = 128,
    overlap: float = 0.5,
    batch_size: int = 8,
    flips: bool = False,
    progress: bool = False,
) -> Float32[np.ndarray, "thresholds height width"]:
    """Gap probabilities of a raster in memory, of any size.

    Probabilities of overlapping windows are blended, not logits: those have no bound (for a network of
    heights they are metres), and one window would outvote the others.

    Args:
        state: what predicts.
        dsm: surface height ``[height, width]``, metres; NaN (or masked) where not known.
        thresholds: canopy heights, metres, in any order.
        resolution: ground size of a pixel's side, metres, for networks that are told it.
        tile_size: side of a window, pixels; best that of the training.
        overlap: share of a window that the next one repeats.
        batch_size: windows that are computed at once.
        flips: mean over the 8 symmetries of the square.
        progress: show a bar.

    Returns:
        Thresholds in the order given, NaN where the surface is not known. A higher threshold never has a
        lower probability.

    Raises:
        ValueError: a raster that is not ``[height, width]``, thresholds that are no heights, or a window
            that the network does not take.
    """
    windows = Windows(tile_size, overlap, batch_size, flips)
    return _whole(state, dsm, thresholds, resolution, windows, progress)[0]


def predict_deviation(
    state: TrainState,
    dsm: Any,
    thresholds: Sequence[float],
    *,
    samples: int = 16,
    resolution: float | None = None,
    tile_size: int = 128,
    overlap: float = 0.5,
    batch_size: int = 8,
    progress: bool = False,
) -> Float32[np.ndarray, "thresholds height width"]:
    """Standard deviation of gap probabilities over passes with stochastic depth and dropout at work.

    BatchNorm keeps its running statistics in these passes, and each drops by the network's own rates.

    Source: Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, arXiv:1506.02142.

    Args:
        state: what predicts, with stochastic depth or dropout.
        dsm: surface height ``[height, width]``, metres; NaN (or masked) where not known.
        thresholds: canopy heights, metres, in any order.
        samples: passes, 2 or more.
        resolution: ground size of a pixel's side, metres, for networks that are told it.
        tile_size: side of a window, pixels; best that of the training.
        overlap: share of a window that the next one repeats.
        batch_size: windows that are computed at once.
        progress: show a bar.

    Returns:
        Thresholds in the order given, NaN where the surface is not known.

    Raises:
        ValueError: as in `predict_array`; or nothing in the network is random.
    """
    if samples < 2:
        raise ValueError(f"samples = {samples}: must be 2 or more to have a standard deviation")
    windows = Windows(tile_size, overlap, batch_size, samples=samples)
    deviation = _whole(state, dsm, thresholds, resolution, windows, progress)[1]
    assert deviation is not None
    return deviation


def check_thresholds(thresholds: Sequence[float]) -> Float32[np.ndarray, " thresholds"]:
    """Thresholds as float32 in the order given.

    Raises:
        ValueError: none, one that is no height above 0, or one twice.
    """
    heights = np.asarray(thresholds, np.float32)
    if heights.ndim != 1 or not len(heights) or not ((heights > 0) & (heights < np.inf)).all():
        raise ValueError(f"thresholds = {thresholds}: must be one or more heights in metres, above 0")
    if (np.diff(np.sort(heights)) < SAME_THRESHOLD).any():
        raise ValueError(f"thresholds = {thresholds}: one is there twice; name each once")
    return heights


def _whole(
    state: TrainState,
    dsm: Any,
    thresholds: Sequence[float],
    resolution: float | None,
    windows: Windows,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Probability and deviation of a raster in memory, thresholds in the order given."""
    surface = np.ma.filled(np.asanyarray(dsm).astype(np.float32), np.nan)
    if surface.ndim != 2 or not surface.size:
        raise ValueError(f"dsm has shape {surface.shape}: must be [height, width]")
    heights = check_thresholds(thresholds)
    order, shape = np.argsort(heights), (surface.shape[0], surface.shape[1])
    maps = [np.empty((len(heights), *shape), np.float32) for _ in range(2 if windows.samples else 1)]

    def read(first: int, last: int) -> np.ndarray:
        return surface[first:last]

    with progress_bar(count_windows(shape, windows), progress) as bar:
        for strip in predicted_strips(state, read, shape, heights[order], windows, resolution, bar.update):
            rows = slice(strip.first_row, strip.first_row + len(strip.dsm))
            for out, part in zip(maps, (strip.probability, strip.deviation), strict=False):
                out[order, rows] = part
    return maps[0], maps[1] if windows.samples else None
