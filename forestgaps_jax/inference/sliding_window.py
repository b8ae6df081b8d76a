"""Images larger than a window: overlapping windows, blended without a seam, for any network."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from forestgaps_jax.compilation import jit
from forestgaps_jax.inference.progress import progress_bar
from forestgaps_jax.inference.windows import Windows, count_windows, lay_windows

Read = Callable[[int, int], Float32[np.ndarray, "rows width channels"]]
"""Rows of an image from a first to a last (exclusive); NaN where not known."""

Predict = Callable[[Float32[np.ndarray, "batch size size channels"]], Any]
"""Maps ``[batch, bands, size, size]`` of a batch of windows; best left on the device."""


class Rows(NamedTuple):
    """Finished rows of an image and of its maps.

    Attributes:
        first: number of the first of them.
        image: as it was read.
        maps: what was predicted; NaN where a channel of the image is not known.
    """

    first: int
    image: Float32[np.ndarray, "rows width channels"]
    maps: Float32[np.ndarray, "bands rows width"]


def sliding_window_inference(
    apply: Callable[[Any, Any], Any],
    params: Any,
    image: Any,
    *,
    tile_size: int = 128,
    overlap: float = 0.5,
    batch_size: int = 8,
    fill: float = 0.0,
    progress: bool = False,
) -> Float32[np.ndarray, "height width classes"]:
    """What a network of any library gives of an image of any size.

    What it gives is blended as it is: let ``apply`` end in a softmax or a sigmoid, since logits have no bound
    and one window would outvote the others. Equal functions share one compiled one.

    Args:
        apply: pure, hashable: ``apply(params, windows [batch, size, size, channels]) -> [batch, size, size,
            classes]``, any number of classes, with its weights in ``params`` alone. Define it once, not in a
            loop: each new function is compiled anew.
        params: a pytree.
        image: ``[height, width, channels]``; NaN where not known.
        tile_size: side of a window, pixels.
        overlap: share of a window that the next one repeats.
        batch_size: windows that are computed at once.
        fill: what ``apply`` sees where the image is not known, or a window sticks out of it; NaN for the
            networks here, which leave such pixels out.
        progress: show a bar.

    Returns:
        The blended maps; NaN where a channel of the image is not known.

    Raises:
        ValueError: an image that is not ``[height, width, channels]``, windows that cannot be, or a network
            that gives something else than ``[batch, size, size, classes]``.

    >>> apply = lambda params, windows: jax.nn.softmax(windows @ params)
    >>> image = np.random.default_rng(0).normal(size=(50, 70, 2)).astype(np.float32)
    >>> classes = sliding_window_inference(apply, jnp.ones((2, 3)), image, tile_size=32)
    >>> classes.shape, np.unique(classes.round(4)).tolist()
    ((50, 70, 3), [0.33329999446868896])
    """
    pixels = np.ma.filled(np.asanyarray(image).astype(np.float32), np.nan)
    if pixels.ndim != 3 or not pixels.size:
        raise ValueError(f"image has shape {pixels.shape}: must be [height, width, channels]")
    windows = Windows(tile_size, overlap, batch_size)
    height, width, channels = pixels.shape
    batch = jax.ShapeDtypeStruct((batch_size, tile_size, tile_size, channels), jnp.float32)
    shape = getattr(jax.eval_shape(apply, params, batch), "shape", ())
    if len(shape) != 4 or shape[:3] != batch.shape[:3]:
        raise ValueError(
            f"apply gives {shape} of {batch.shape}: must be one array [batch, size, size, classes]"
        )
    out = np.empty((height, width, shape[-1]), np.float32)

    def predict(seen: np.ndarray) -> Any:
        return _bands_first(apply, params, np.where(np.isfinite(seen), seen, np.float32(fill)))

    with progress_bar(count_windows((height, width), windows), progress) as bar:
        read = partial(_rows_of, pixels)
        for rows in blended_rows(predict, read, (height, width, channels), shape[-1], windows, bar.update):
            out[rows.first : rows.first + len(rows.image)] = np.moveaxis(rows.maps, 0, -1)
    return out


@partial(jit, static_argnums=0)
def _bands_first(apply: Any, params: Any, seen: Array) -> Float[Array, "batch bands size size"]:
    return jnp.moveaxis(apply(params, seen).astype(jnp.float32), -1, 1)


def _rows_of(pixels: np.ndarray, first: int, last: int) -> np.ndarray:
    return pixels[first:last]


def blended_rows(
    predict: Predict,
    read: Read,
    shape: tuple[int, int, int],
    bands: int,
    windows: Windows,
    advance: Callable[[int], Any] = lambda count: None,
) -> Iterator[Rows]:
    """Map an image from the top to the bottom, in memory that grows with its width but not with its height.

    Args:
        predict: always gets batches of one shape, filled up with NaN; no window in it is without a known
            pixel.
        read: gives rows of the image; each is asked for once, in order.
        shape: rows, columns and channels of the image.
        bands: maps that are predicted.
        windows: how to cut.
        advance: called with the number of windows that are done, of `count_windows`.
    """
    size, (height, width, channels) = windows.tile_size, shape
    rows, columns = (lay_windows(side, size, windows.overlap) for side in (height, width))
    batch_size = min(windows.batch_size, len(rows.starts) * len(columns.starts))
    image = np.full((size, max(width, size), channels), np.nan, np.float32)
    maps = np.zeros((bands, *image.shape[:2]))
    read_to = 0
    for number, (start, weight) in enumerate(zip(rows.starts, rows.weights, strict=True)):
        end = min(start + size, height)
        image[read_to - start : end - start, :width] = read(int(read_to), int(end))
        read_to = end
        for column, values in _row_of_windows(predict, image, columns.starts, batch_size):
            across = slice(columns.starts[column], columns.starts[column] + size)
            maps[..., across] += weight[:, None] * columns.weights[column] * values
        advance(len(columns.starts))
        finished = (height if start == rows.starts[-1] else rows.starts[number + 1]) - start
        known = np.isfinite(image[:finished, :width]).all(axis=-1)
        done = np.where(known, maps[:, :finished, :width], np.nan).astype(np.float32)
        yield Rows(int(start), image[:finished, :width].copy(), done)
        image[:-finished], image[-finished:] = image[finished:].copy(), np.nan
        maps[:, :-finished], maps[:, -finished:] = maps[:, finished:].copy(), 0.0


def _row_of_windows(
    predict: Predict, image: np.ndarray, starts: np.ndarray, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Number and maps of each window with a known pixel; one batch is computed while another is blended."""
    size = len(image)
    tiles = {number: image[:, start : start + size] for number, start in enumerate(starts)}
    seen = [number for number, tile in tiles.items() if np.isfinite(tile).any()]
    in_flight: deque[tuple[list[int], Any]] = deque()

    def fetch() -> Iterator[tuple[int, np.ndarray]]:
        numbers, maps = in_flight.popleft()
        yield from zip(numbers, np.asarray(maps), strict=False)

    for first in range(0, len(seen), batch_size):
        numbers = seen[first : first + batch_size]
        batch = np.full((batch_size, size, size, image.shape[-1]), np.nan, np.float32)
        batch[: len(numbers)] = [tiles[number] for number in numbers]
        in_flight.append((numbers, predict(batch)))
        if len(in_flight) > 1:
            yield from fetch()
    while in_flight:
        yield from fetch()
