"""Batches of tiles that lie on disk, in order, shared between processes, on the device before their step."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from forestgaps_jax.config import Config
from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.cut_tiles import CutTiles
from forestgaps_jax.data.held import Names
from forestgaps_jax.data.sampler import sampling_key
from forestgaps_jax.data.stream_order import Order, shuffled_order, weighted_order
from forestgaps_jax.data.stream_tiles import ReadTile, TileReader
from forestgaps_jax.data.tiles import Places
from forestgaps_jax.data.unread import Unread
from forestgaps_jax.data.windows import Pair

_THREADS = 4
"""That read a batch each; GDAL decodes without holding the others up."""

_AHEAD = 4
"""Batches that are read before they are asked for."""

_ON_DEVICE = 2
"""Batches that are put on the device before they are asked for: while one is copied, another is there."""


@dataclass(frozen=True, eq=False)
class TileStream:
    """Batches of tiles that lie on disk; see `stream`.

    The order of an epoch is a function of the seed and its number alone. Of several processes, each reads
    its own part of every batch: that of process i of n is tiles i / n to (i + 1) / n of the batch, so that
    the parts, one after the other, are the batch of one process, whatever n is.

    Attributes:
        pairs: the rasters.
        places: pair, row and column of each tile.
        config: the settings when it was made; ``batch_size`` is that of all processes together.
        shuffle: for training.
        weights: how often tiles of each pair come in training, relative to the others; None: each tile once.
        share: number of this process, from 0, and of all processes.
        put: called in a thread of its own with each batch, before it is asked for.
        collect: called in the main thread, with what could not be read here, at the end of a pass and where
            it is asked for its place; what it gives back is told. See `Unread.of_all`.
    """

    pairs: tuple[Pair, ...]
    places: Places
    config: Config
    shuffle: bool
    weights: tuple[float, ...] | None = None
    share: tuple[int, int] = (0, 1)
    put: Callable[[CutTiles], CutTiles] = jax.device_put
    collect: Callable[[Unread], Unread] = lambda unread: unread

    def __post_init__(self) -> None:
        process, processes = self.share
        if not 0 <= process < processes:
            raise ValueError(f"share = {self.share}: must be the number of a process, from 0, and of all")
        if self.config.batch_size % processes:
            raise ValueError(
                f"batch_size = {self.config.batch_size}: must be a multiple of the {processes} processes "
                "that share each batch"
            )

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

    @property
    def part(self) -> int:
        """Samples of a batch that this process reads."""
        return self.config.batch_size // self.share[1]

    def epoch(self, number: int) -> "TileEpoch":
        """The batches of an epoch, counted from 0."""
        return TileEpoch(self, number)

    def read(
        self, numbers: Sequence[int]
    ) -> tuple[Float32[np.ndarray, "tiles size size 2"], Float32[np.ndarray, " tiles"]]:
        """DSM and CHM of some of the places, metres, as they are, and the sides of their pixels, metres."""
        read = TileReader(self.pairs, self.places, self.config.tile_size)
        tiles = [read(number, self.config.thresholds[0]) for number in numbers]
        resolution = np.array([tile.resolution for tile in tiles], np.float32)
        return np.stack([tile.heights for tile in tiles]), resolution

    def describe(self, number: int) -> str:
        """One of the places, as file, row and column."""
        pair, row, column = self.places[number].tolist()
        return f"{self.pairs[pair].dsm.path.name} row {row} column {column}"

    def at(self, thresholds: tuple[float, ...]) -> "TileStream":
        """The same tiles at other thresholds, metres."""
        return replace(self, config=replace(self.config, thresholds=thresholds))

    def whole(self) -> "TileStream":
        """The same batches for this process alone, on its default device."""
        return TileStream(self.pairs, self.places, self.config, self.shuffle, self.weights)

    def order(self, epoch: int) -> Order:
        """From the number of a tile's turn in an epoch to its place; all processes have the same."""
        if not self.shuffle:
            return lambda turn: turn
        if self.weights is None:
            return shuffled_order(len(self.places), self.config.seed, epoch)
        weights, batch_size = np.array(self.weights), self.config.batch_size
        return weighted_order(self.places[:, 0], weights, self.config.seed, epoch, batch_size)


class TileEpoch(Iterator[CutTiles]):
    """One pass over a stream; it knows where it stands, and what could not be read on the way there.

    Attributes:
        unread: what could not be read up to here; by all processes, when the pass has ended.
    """

    def __init__(self, source: TileStream, number: int):
        grain = import_grain()
        samples = grain.MapDataset.range(len(source) * source.part)
        batches = samples.map(_sample_reader(source, number)).batch(source.part, batch_fn=list)
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        ready = batches.to_iter_dataset(options).map(_batch_maker(source))
        ahead = grain.experimental.ThreadPrefetchIterDataset(ready, prefetch_buffer_size=_ON_DEVICE)
        self._batches, self._ended, self._source = iter(ahead), False, source
        # Also where the pass is given up: what was asked for ahead is not read any more.
        self._close = weakref.finalize(self, self._batches.close)
        self.unread = Unread()

    def __next__(self) -> CutTiles:
        if self._ended:
            raise StopIteration
        try:
            batch = next(self._batches)
        except StopIteration:
            self._end()
            raise
        for number, failure in batch.failures:
            self.unread.add(number, *failure)
        return batch.tiles

    def get_state(self) -> dict[str, Any]:
        """Where it stands, as JSON: after what was given out, whatever was read ahead.

        Where all processes share the pass on their devices, all ask, and come to the same.
        """
        unread = self._source.collect(self.unread)
        return {"batches": self._batches.get_state(), "unread": unread.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was asked, by however many processes."""
        self._batches.set_state(state["batches"])
        self.unread = Unread(state["unread"])

    def _end(self) -> None:
        self._ended = True
        self._close()
        self.unread = self._source.collect(self.unread)
        self.unread.warn(len(self._source.places))


class _Made(NamedTuple):
    """A batch, and the tiles in it that could not be read: their numbers, files, and why."""

    tiles: CutTiles
    failures: list[tuple[int, tuple[str, str]]]


def _sample_reader(source: TileStream, epoch: int) -> Callable[[int], ReadTile]:
    """Reads this process's samples of an epoch by their number."""
    config, each, order = source.config, source.thresholds_each, source.order(epoch)
    read = TileReader(source.pairs, source.places, config.tile_size)

    def read_sample(number: int) -> ReadTile:
        batch, within = divmod(int(number), source.part)
        slot = batch * config.batch_size + source.share[0] * source.part + within
        turn, at = divmod(slot, each)
        if slot >= source.slots and source.weights is None:
            return read.filling(config.thresholds[0])
        return read(order(turn), config.thresholds[at])

    return read_sample


def _batch_maker(source: TileStream) -> Callable[[Sequence[ReadTile]], _Made]:
    config = source.config
    common: dict[str, Any] = {
        "key": sampling_key(config.seed),
        "thresholds": config.thresholds,
        "threshold_range": config.threshold_range,
        "thresholds_per_tile": config.thresholds_per_tile,
        "augmentation": Augmentation.from_config(config) if source.shuffle else None,
    }

    def make(tiles: Sequence[ReadTile]) -> _Made:
        threshold = np.array([tile.threshold for tile in tiles], np.float32)
        batch = CutTiles(
            tiles=np.stack([tile.heights for tile in tiles]),
            resolution=np.array([tile.resolution for tile in tiles], np.float32),
            used=np.array([tile.used for tile in tiles]),
            threshold=None if source.shuffle else threshold,
            names=Names(source.describe(tile.number) for tile in tiles if tile.number is not None),
            **common,
        )
        failures = [(t.number, t.failure) for t in tiles if t.number is not None and t.failure is not None]
        return _Made(source.put(batch), failures)

    return make


def import_grain() -> Any:
    """The library grain.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            "tiles are read from disk ahead of training with grain: pip install grain"
        ) from error
    return grain
