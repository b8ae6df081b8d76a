"""Tiles with the grey opening of the surface around them, of sites in memory or of pairs on disk."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from forestgaps_jax.data.tiles import Places
from forestgaps_jax.data.windows import Pair, UnreadableError, WindowReader
from forestgaps_jax.inference.baseline import opening_baseline, opening_reach
from forestgaps_jax.types import Site


class OpenedTile(NamedTuple):
    """A tile, metres; NaN where not known.

    Attributes:
        opening: height above the grey opening of the whole raster, not of the tile alone.
        chm: canopy height.
        valid: where DSM and CHM are known.
    """

    opening: Float32[np.ndarray, "size size"]
    chm: Float32[np.ndarray, "size size"]
    valid: Bool[np.ndarray, "size size"]


def opened_tiles(sites: Sequence[Site] | Sequence[Pair], places: Places, size: int) -> Iterator[OpenedTile]:
    """The tiles at places (raster, first row, first column), one by one.

    Of a pair no more is in memory than a tile and as much around it as the opening looks at; a tile that
    cannot be read is not valid.
    """
    openings: dict[int, Float32[np.ndarray, "height width"]] = {}
    read = WindowReader()
    for index, row, column in places.tolist():
        site = sites[index]
        if isinstance(site, Pair):
            yield _read_tile(read, site, row, column, size)
            continue
        if index not in openings:
            openings[index] = opening_baseline(site.dsm, site.grid.resolution)
        window = np.s_[row : row + size, column : column + size]
        dsm, chm = site.dsm[window], site.chm[window]
        yield OpenedTile(openings[index][window], chm, np.isfinite(dsm) & np.isfinite(chm))


def _read_tile(read: WindowReader, pair: Pair, row: int, column: int, size: int) -> OpenedTile:
    reach = opening_reach(pair.grid.resolution)
    top, left = max(row - reach, 0), max(column - reach, 0)
    bottom, right = (min(at + size + reach, n) for at, n in zip((row, column), pair.shape, strict=True))
    try:
        heights = read(pair, top, left, bottom - top, right - left)
    except UnreadableError:
        unknown = np.full((size, size), np.nan, np.float32)
        return OpenedTile(unknown, unknown, np.zeros((size, size), bool))
    opening = opening_baseline(heights[..., 0], pair.grid.resolution)
    window = np.s_[row - top : row - top + size, column - left : column - left + size]
    dsm, chm = np.moveaxis(heights[window], -1, 0)
    return OpenedTile(opening[window], chm, np.isfinite(dsm) & np.isfinite(chm))
