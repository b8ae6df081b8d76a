"""Gap probabilities of a whole raster, strip by strip."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from forestgaps_jax.inference.passes import check_samples, predict_windows
from forestgaps_jax.inference.sliding_window import Predict, blended_rows
from forestgaps_jax.inference.windows import Windows
from forestgaps_jax.state import TrainState

ReadHeights = Callable[[int, int], Float32[np.ndarray, "rows width"]]
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
    read: ReadHeights,
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
    maps = len(thresholds) * (2 if windows.samples else 1)
    predict = _predict(state, thresholds, windows, resolution)
    for rows in blended_rows(
        predict, lambda *ends: read(*ends)[..., None], (*shape, 1), maps, windows, advance
    ):
        probability, deviation = rows.maps[: len(thresholds)], rows.maps[len(thresholds) :]
        yield Strip(rows.first, rows.image[..., 0], probability, deviation if len(deviation) else None)


def _predict(
    state: TrainState, thresholds: np.ndarray, windows: Windows, resolution: float | None
) -> Predict:
    """Probabilities of a batch of windows, then their deviations if there are samples."""
    calls = count()

    def predict(batch: np.ndarray) -> Any:
        pixel = None if resolution is None else np.full(len(batch), resolution, np.float32)
        key = jax.random.fold_in(state.rng, next(calls)) if windows.samples else state.rng
        options = {"flips": windows.flips, "samples": windows.samples}
        maps: Any = predict_windows(state, batch, thresholds, pixel, key, **options)
        return maps[0] if maps[1] is None else jnp.concatenate(maps, axis=1)

    return predict
