"""Where tiles lie, and which of them train, validate and test: no pixel serves two of these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from forestgaps_jax.config import Config
from forestgaps_jax.data.ground import Ground, Rectangle, pixels_inside, pixels_touched, shared_grounds
from forestgaps_jax.types import Site

Places = Int32[np.ndarray, "_ 3"]
"""Site, first row and first column of each tile."""


@dataclass(frozen=True, eq=False)
class Split:
    """Tiles by what they are for."""

    train: Places
    val: Places
    test: Places


def split_blocks(sites: Sequence[Ground], config: Config) -> Split:
    """Deal square blocks of ground to training, validation and test, and lay tiles into them.

    Rasters that show the same ground (they overlap in one CRS) share their blocks, whatever their pixel
    size, so a place that tests in one never trains in the other. Validation and test tiles lie side by
    side inside their blocks. Training tiles lie anywhere, overlapping, as long as no pixel of them is
    within ``config.split_buffer`` of a validation or test block.

    Args:
        sites: rasters to tile; those in memory by their valid pixels too, others by where they lie alone.
        config: ``tile_size``, ``tile_overlap``, ``min_valid_fraction``, ``block_size``, ``split_buffer``,
            ``val_fraction``, ``test_fraction``, ``seed``.

    Raises:
        ValueError: the sites are too small for the three parts; says what to change.
    """
    blocks = [block for ground in shared_grounds(sites) for block in _blocks(sites, ground, config)]
    tiles = [_tiles_in_block(sites, block, config) for block in blocks]
    usable = [i for i, places in enumerate(tiles) if len(places)]
    val, test = _deal(usable, config)
    train = _training_tiles(sites, [blocks[i] for i in val + test], config)
    if not len(train):
        raise ValueError(
            "no training tile lies clear of the validation and test blocks: "
            f"make tile_size (now {config.tile_size} px) or split_buffer (now {config.split_buffer:g} m) "
            "smaller, or give more sites"
        )
    return Split(train, *(_join([tiles[i] for i in part]) for part in (val, test)))


def all_tiles(sites: Sequence[Ground], config: Config, *, training: bool = False) -> Places:
    """Tiles over whole sites, those with too few valid pixels left out.

    Args:
        sites: rasters to tile.
        config: ``tile_size``, ``tile_overlap``, ``min_valid_fraction``.
        training: overlapping tiles that reach the edges; otherwise side by side.

    Raises:
        ValueError: no site holds a tile.
    """
    if training:
        places = _training_tiles(sites, [], config)
    else:
        whole = [_Block(Rectangle.of(site), (index,)) for index, site in enumerate(sites)]
        places = _join([_tiles_in_block(sites, block, config) for block in whole])
    if not len(places):
        raise ValueError(f"no site holds a valid tile of {config.tile_size} px: make tile_size smaller")
    return places


@dataclass(frozen=True)
class _Block:
    """A piece of ground and the sites that show some of it, of one CRS."""

    rectangle: Rectangle
    sites: tuple[int, ...]


def _blocks(sites: Sequence[Ground], ground: tuple[int, ...], config: Config) -> list[_Block]:
    tile = config.tile_size * max(sites[i].grid.resolution for i in ground)
    side = config.block_size or 2 * tile
    if side < tile:
        raise ValueError(f"block_size = {side:g} m is smaller than a tile of {tile:g} m")
    shown = [Rectangle.of(sites[i]) for i in ground]
    edges = np.array(shown)
    blocks = []
    for rectangle in Rectangle.around(shown).divide(side):
        there = _overlapping(edges, rectangle)
        if len(there):
            blocks.append(_Block(rectangle, tuple(ground[i] for i in there)))
    return blocks


def _overlapping(edges: Float[np.ndarray, "rectangles 4"], rectangle: Rectangle) -> Int[np.ndarray, "_"]:
    """Which rectangles share ground with one."""
    left, bottom, right, top = edges.T
    across = (left < rectangle.right) & (right > rectangle.left)
    return np.flatnonzero(across & (bottom < rectangle.top) & (top > rectangle.bottom))


def _tiles_in_block(sites: Sequence[Ground], block: _Block, config: Config) -> Places:
    size, found = config.tile_size, []
    for index in block.sites:
        site = sites[index]
        top, left, bottom, right = pixels_inside(block.rectangle, site)
        rows, columns = (side_by_side(length, size) for length in (bottom - top, right - left))
        free = np.ones((len(rows), len(columns)), bool)
        # Only the block is looked at: a site has many.
        valid = _valid(site, np.s_[top:bottom, left:right])
        places = _usable_tiles(index, rows, columns, free, valid, config)
        found.append(places + np.array([0, top, left], np.int32))
    return _join(found)


def side_by_side(length: int, size: int) -> Int[np.ndarray, " tiles"]:
    """First pixels of the tiles along a side, in its middle.

    >>> side_by_side(10, 4)
    array([1, 5])
    """
    return length % size // 2 + np.arange(length // size) * size


def overlapping(length: int, size: int, overlap: float) -> Int[np.ndarray, " tiles"]:
    """First pixels of the tiles along a side that share ``overlap`` of theirs with the next.

    >>> overlapping(11, 4, 0.5)
    array([0, 2, 4, 6, 7])
    """
    if length < size:
        return np.arange(0)
    stride = max(1, round(size * (1 - overlap)))
    # The last tile is flush with the edge, so that the edge trains too.
    return np.unique(np.append(np.arange(0, length - size + 1, stride), length - size))


def _training_tiles(sites: Sequence[Ground], kept_out: Sequence[_Block], config: Config) -> Places:
    grown = [block.rectangle.grow(config.split_buffer) for block in kept_out]
    systems = [sites[block.sites[0]].grid.crs for block in kept_out]
    edges = {
        crs: np.array([g for g, c in zip(grown, systems, strict=True) if c == crs]) for crs in set(systems)
    }
    found = []
    for index, site in enumerate(sites):
        rows, columns = (overlapping(length, config.tile_size, config.tile_overlap) for length in site.shape)
        free = np.ones((len(rows), len(columns)), bool)
        near = edges.get(site.grid.crs, np.zeros((0, 4)))
        for number in _overlapping(near, Rectangle.of(site)):
            top, left, bottom, right = pixels_touched(Rectangle(*near[number].tolist()), site)
            touched = (
                _touching(rows, top, bottom, config.tile_size),
                _touching(columns, left, right, config.tile_size),
            )
            free[touched] = False
        found.append(_usable_tiles(index, rows, columns, free, _valid(site, np.s_[:, :]), config))
    return _join(found)


def _touching(starts: Int[np.ndarray, " tiles"], first: int, last: int, size: int) -> slice:
    """Those of the tiles along a side that hold one of the pixels from ``first`` to ``last`` (exclusive)."""
    if first >= last:
        return slice(0, 0)
    return slice(*np.searchsorted(starts, (first - size + 1, last)).tolist())


def _valid(site: Ground, window: tuple[slice, slice]) -> Bool[np.ndarray, "height width"] | None:
    """Which pixels of a site are valid; None where that is not known before they are read."""
    if not isinstance(site, Site):
        return None
    return np.isfinite(site.dsm[window]) & np.isfinite(site.chm[window])


def _usable_tiles(
    index: int,
    rows: Int[np.ndarray, " rows"],
    columns: Int[np.ndarray, " columns"],
    free: Bool[np.ndarray, "rows columns"],
    valid: Bool[np.ndarray, "height width"] | None,
    config: Config,
) -> Places:
    """Those tiles of the grid ``rows x columns`` that are free and, as far as is known, valid enough."""
    size = config.tile_size
    row, column = (axis[free] for axis in np.meshgrid(rows, columns, indexing="ij"))
    if valid is not None:
        enough = _sum_in_tiles(valid, row, column, size) >= max(config.min_valid_fraction * size**2, 1)
        row, column = row[enough], column[enough]
    return np.stack([np.full(row.shape, index), row, column], axis=1).astype(np.int32)


def _sum_in_tiles(raster: np.ndarray, row: np.ndarray, column: np.ndarray, size: int) -> np.ndarray:
    """Number of True pixels in each tile, from a summed-area table."""
    table = np.pad(raster.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    last_row, last_column = row + size, column + size
    return (
        table[last_row, last_column] - table[row, last_column] - table[last_row, column] + table[row, column]
    )


def _deal(usable: list[int], config: Config) -> tuple[list[int], list[int]]:
    """Blocks for validation and for test, drawn by the seed; a part that is wanted gets one at least."""
    counts = [
        max(1, math.floor(fraction * len(usable) + 0.5)) if fraction else 0
        for fraction in (config.val_fraction, config.test_fraction)
    ]
    if len(usable) <= sum(counts):
        raise ValueError(
            f"the sites hold {len(usable)} block(s) with valid tiles, too few to train on one and keep "
            f"{counts[0]} for validation and {counts[1]} for test: make tile_size (now {config.tile_size} "
            "px) or block_size smaller, give more or larger sites, or set val_fraction or test_fraction to 0"
        )
    order = [usable[i] for i in np.random.default_rng(config.seed).permutation(len(usable))]
    return order[: counts[0]], order[counts[0] : sum(counts)]


def _join(places: list[Places]) -> Places:
    return np.concatenate([np.zeros((0, 3), np.int32), *places])
