"""Batches of tiles that are read from GeoTIFF pairs while training goes on: for what memory cannot hold."""

import logging
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from forestgaps_jax.config import Config
from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.cut_tiles import CutTiles
from forestgaps_jax.data.geotiff import FilePath
from forestgaps_jax.data.sampler import Names, sampling_key
from forestgaps_jax.data.tiles import Places, overlapping, side_by_side
from forestgaps_jax.data.windows import Pair, UnreadableError, WindowReader, open_pair

_THREADS = 4
"""That read a batch each; GDAL decodes without holding the others up."""

_AHEAD = 4
"""Batches that are read before they are asked for."""


def stream(
    pairs: Sequence[tuple[FilePath, FilePath]], config: Config, *, shuffle: bool = True
) -> "TileStream":
    """Tiles of GeoTIFF pairs, read from disk batch by batch: a source for `train` and `evaluate`.

    All of the ground of all pairs is read: pairs that train and pairs that validate are to be given apart,
    as two streams. A tile is not looked at before it is read, so ``min_valid_fraction`` does not act here;
    pixels without heights are not valid, as everywhere. A tile that cannot be read (its file is cut off) has
    no valid pixel: nothing is learnt from it, and a warning at the end of the epoch counts such tiles by
    file, also those before a resume.

    Files in tiles are read fastest, as GDAL reads whole blocks: ``gdal_translate -co TILED=YES``.

    Args:
        pairs: (DSM, CHM) each; see `read_site` for what they are. Both must lie on one grid, or be shifted
            by whole pixels.
        config: ``tile_size``, ``tile_overlap``, ``batch_size``, thresholds, augmentation and ``seed``.
        shuffle: for training: overlapping tiles in another order each epoch, augmented, at thresholds that
            are drawn. Otherwise tiles side by side, in order, as they are, each at every listed threshold.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no pair, a file is no raster of heights, both of a pair lie on different grids,
            or no pair holds a tile.
        ImportError: grain or rasterio is not installed.

    >>> val = stream(other_pairs, config, shuffle=False)  # doctest: +SKIP
    >>> train(state, config, {"train": stream(pairs, config), "val": val})  # doctest: +SKIP
    """
    _import_grain()
    opened = tuple(open_pair(*_checked_pair(pair)) for pair in pairs)
    if not opened:
        raise ValueError("pairs is empty: give one (DSM path, CHM path) or more")
    places = [_places(number, pair.shape, config, shuffle) for number, pair in enumerate(opened)]
    if not sum(map(len, places)):
        shapes = ", ".join(f"{height} x {width}" for height, width in (pair.shape for pair in opened[:8]))
        raise ValueError(
            f"no pair holds a tile of {config.tile_size} px (the common grounds have {shapes} px): make "
            "tile_size smaller"
        )
    return TileStream(opened, np.concatenate(places), replace(config), shuffle)


@dataclass(frozen=True, eq=False)
class TileStream:
    """Batches of tiles that lie on disk; see `stream`.

    The order of an epoch is a function of the seed and its number alone.

    Attributes:
        pairs: the rasters.
        places: pair, row and column of each tile.
        config: the settings when it was made.
        shuffle: for training.
    """

    pairs: tuple[Pair, ...]
    places: Places
    config: Config
    shuffle: bool

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.slots // self.config.batch_size)

    def __iter__(self) -> "TileEpoch":
        """The first epoch."""
        return self.epoch(0)

    @property
    def slots(self) -> int:
        """Samples in an epoch."""
        return len(self.places) * self.thresholds_each

    @property
    def thresholds_each(self) -> int:
        """How often a tile comes in an epoch: in evaluation once for each threshold, one after the other."""
        return 1 if self.shuffle else len(self.config.thresholds)

    def epoch(self, number: int) -> "TileEpoch":
        """The batches of an epoch, counted from 0."""
        return TileEpoch(self, number)

    def describe(self, number: int) -> str:
        """One of the places, as file, row and column."""
        pair, row, column = self.places[number].tolist()
        return f"{self.pairs[pair].dsm.path.name} row {row} column {column}"

    def at(self, thresholds: tuple[float, ...]) -> "TileStream":
        """The same tiles at other thresholds, metres."""
        return replace(self, config=replace(self.config, thresholds=thresholds))


class TileEpoch(Iterator[CutTiles]):
    """One pass over a stream; it knows where it stands, and what could not be read on the way there.

    Attributes:
        skipped: by file, how many tiles up to here could not be read, the last of them, and why the first.
    """

    def __init__(self, source: TileStream, number: int):
        grain, config = _import_grain(), source.config
        tiles = grain.MapDataset.range(source.slots)
        if source.shuffle:
            tiles = tiles.shuffle(int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0]))
        batches = tiles.map(_TileReader(source)).batch(config.batch_size, batch_fn=list)
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        self._source, self._key = source, sampling_key(config.seed)
        self._batches, self._ended = iter(batches.to_iter_dataset(options)), False
        # Also where the pass is given up: what was asked for ahead is not read any more.
        self._close = weakref.finalize(self, self._batches.close)
        self.skipped: dict[str, dict[str, Any]] = {}

    def __next__(self) -> CutTiles:
        if self._ended:
            raise StopIteration
        try:
            tiles = next(self._batches)
        except StopIteration:
            self._end()
            raise
        for tile in tiles:
            self._count(tile)
        return self._together(tiles)

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        skipped = {file: dict(entry) for file, entry in self.skipped.items()}
        return {"batches": self._batches.get_state(), "skipped": skipped}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was asked."""
        self._batches.set_state(state["batches"])
        self.skipped = {file: dict(entry) for file, entry in state["skipped"].items()}

    def _count(self, tile: "_Tile") -> None:
        if tile.failure is None:
            return
        path, why = tile.failure
        entry = self.skipped.setdefault(path, {"tiles": 0, "last": None, "why": why})
        # At its next threshold it is the same tile.
        entry["tiles"] += entry["last"] != tile.number
        entry["last"] = tile.number

    def _end(self) -> None:
        self._ended = True
        self._close()
        if self.skipped:
            files = [f"{entry['tiles']} of {entry['why']}" for entry in self.skipped.values()]
            logging.getLogger(__name__).warning(
                "%d of %d tiles were skipped in this epoch, as they could not be read: %s",
                sum(entry["tiles"] for entry in self.skipped.values()),
                len(self._source.places),
                "; ".join(files),
            )

    def _together(self, tiles: "Sequence[_Tile]") -> CutTiles:
        source, config = self._source, self._source.config
        # Those that fill up are of no site; any pixel size and threshold do.
        numbers = np.arange(config.batch_size) % len(tiles)
        real = np.arange(config.batch_size) < len(tiles)
        used = np.array([tile.failure is None for tile in tiles])[numbers] & real
        heights = np.stack([tile.heights for tile in tiles])[numbers]
        heights[~used] = np.nan
        threshold = np.array([tile.threshold for tile in tiles], np.float32)[numbers]
        return CutTiles(
            tiles=heights,
            resolution=np.array([tile.resolution for tile in tiles], np.float32)[numbers],
            used=used,
            key=self._key,
            threshold=None if source.shuffle else threshold,
            thresholds=config.thresholds,
            threshold_range=config.threshold_range,
            thresholds_per_tile=config.thresholds_per_tile,
            augmentation=Augmentation.from_config(config) if source.shuffle else None,
            names=Names(source.describe(tile.number) for tile in tiles),
        )


class _Tile(NamedTuple):
    """A tile that was read, or why it was not.

    Attributes:
        number: among the stream's places.
        heights: DSM and CHM, metres; all NaN where it could not be read.
        resolution: side of a pixel, metres.
        threshold: that evaluation asks for, metres; of no meaning in training.
        failure: the file that could not be read, and why; None where it was read.
    """

    number: int
    heights: Float32[np.ndarray, "size size 2"]
    resolution: float
    threshold: float
    failure: tuple[str, str] | None


class _TileReader:
    """Reads the samples of a stream by their number."""

    def __init__(self, source: TileStream):
        self._source, self._read = source, WindowReader()

    def __call__(self, slot: int) -> _Tile:
        source, size = self._source, self._source.config.tile_size
        number, at = divmod(int(slot), source.thresholds_each)
        index, row, column = source.places[number].tolist()
        pair, failure = source.pairs[index], None
        try:
            heights = self._read(pair, row, column, size)
        except UnreadableError as error:
            heights, failure = np.full((size, size, 2), np.nan, np.float32), (str(error.path), str(error))
        return _Tile(number, heights, pair.resolution, source.config.thresholds[at], failure)


def _import_grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            "tiles are read from disk ahead of training with grain: pip install grain"
        ) from error
    return grain


def _checked_pair(pair: Any) -> tuple[FilePath, FilePath]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"pairs holds {pair!r}: must be (DSM path, CHM path) each")
    return pair[0], pair[1]


def _places(number: int, shape: tuple[int, int], config: Config, shuffle: bool) -> Places:
    size = config.tile_size
    rows, columns = (
        overlapping(length, size, config.tile_overlap) if shuffle else side_by_side(length, size)
        for length in shape
    )
    row, column = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    return np.stack([np.full(row.shape, number), row, column], axis=1).astype(np.int32)
