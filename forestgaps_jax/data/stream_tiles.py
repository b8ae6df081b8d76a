"""The tiles of a stream, read one by one; those that cannot be read are unknown, and say why."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from forestgaps_jax.data.tiles import Places
from forestgaps_jax.data.windows import Pair, UnreadableError, WindowReader


class ReadTile(NamedTuple):
    """A tile that was read, or why it was not.

    Attributes:
        number: among the stream's places; None where it only fills up a batch.
        heights: DSM and CHM, metres; all NaN where they are not known.
        resolution: side of a pixel, metres.
        threshold: that evaluation asks for, metres; of no meaning in training.
        failure: the file that could not be read, and why; None where it was read.
    """

    number: int | None
    heights: Float32[np.ndarray, "size size 2"]
    resolution: float
    threshold: float
    failure: tuple[str, str] | None = None

    @property
    def used(self) -> bool:
        """Whether it was read and counts."""
        return self.number is not None and self.failure is None


class TileReader:
    """Reads tiles by their number, in any thread.

    Args:
        pairs: the rasters.
        places: pair, row and column of each tile.
        size: side of a tile, pixels.
    """

    def __init__(self, pairs: Sequence[Pair], places: Places, size: int):
        self._pairs, self._places, self._size, self._read = pairs, places, size, WindowReader()

    def __call__(self, number: int, threshold: float) -> ReadTile:
        """A tile, to be asked for a threshold (m)."""
        index, row, column = self._places[number].tolist()
        pair = self._pairs[index]
        try:
            heights, failure = self._read(pair, row, column, self._size), None
        except UnreadableError as error:
            heights, failure = self._unknown(), (str(error.path), str(error))
        return ReadTile(number, heights, pair.grid.resolution, threshold, failure)

    def filling(self, threshold: float) -> ReadTile:
        """What fills up a batch and counts nothing; any pixel size and threshold do."""
        return ReadTile(None, self._unknown(), self._pairs[0].grid.resolution, threshold)

    def _unknown(self) -> Float32[np.ndarray, "size size 2"]:
        return np.full((self._size, self._size, 2), np.nan, np.float32)
