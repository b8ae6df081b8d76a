"""How the loop reads its sources: samplers, or whatever yields batches."""

import base64
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, repeat
from typing import Any, cast

from forestgaps_jax.config import Config
from forestgaps_jax.data.batches import as_batch, fill_up, warn_of_unlisted
from forestgaps_jax.data.ground import refuse_shared_ground
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.sources import create_data, evaluation_sampler, training_sampler
from forestgaps_jax.data.tile_stream import TileEpoch, TileStream
from forestgaps_jax.parallel import ONE_DEVICE, Devices
from forestgaps_jax.types import Batch, BatchSource, Data, Sampler, Site

_ONLY_ONCE = "a source of type {} can be read only once: give a list of batches, or what can be read again"

_ORDER = (
    "THE ORDER OF data.train IS NOT RESUMED: the first %d batches of %s were read again and dropped; where "
    "it shuffles, some tiles come twice and others not at all. A sampler, a list, or an iterator with "
    "get_state and set_state goes on exactly"
)


def as_data(data: Data | Mapping[str, Any] | Site | Sequence[Site], config: Config) -> Data:
    """Whatever a user trains on, as `Data` of samplers and iterables.

    Args:
        data: a site or several, which are split by blocks; or a `Data` or a mapping with ``train`` and
            perhaps ``val`` and ``test``, each a sampler, an iterable of batches, a site or several.
        config: tiles, split and thresholds.

    Raises:
        ValueError: a mapping with other keys, no training data, a source that cannot be read again or has no
            batch, sites too small, or ground that both trains and tests.
    """
    if (sites := _as_sites(data)) is not None:
        return create_data(sites, config)
    parts = vars(data) if isinstance(data, Data) else data
    if not isinstance(parts, Mapping):
        raise ValueError(
            f"data is a {type(data).__name__}: must be sites, a Data or a mapping with train[, val]"
        )
    if "train" not in parts or set(parts) - {"train", "val", "test"}:
        raise ValueError(f"data has keys {sorted(parts)}: must have train, and may have val and test")
    for part, source in parts.items():
        if part == "train" or source is not None:
            _refuse_unreadable(source, f"data.{part}")
    for part in ("val", "test"):
        refuse_shared_ground(_as_sites(parts["train"]) or [], _as_sites(parts.get(part)) or [])
    sites = _as_sites(parts["train"])
    return Data(
        train=parts["train"] if sites is None else training_sampler(sites, config),
        val=as_evaluation_source(parts.get("val"), config),
        test=as_evaluation_source(parts.get("test"), config),
    )


def as_evaluation_source(source: Any, config: Config) -> Any:
    """The source, a sampler of it at the listed thresholds, or one over the whole of a site or several.

    Raises:
        ValueError: it cannot be read again, or has no batch.
    """
    if source is None:
        return None
    _refuse_unreadable(source, "the data to evaluate on")
    if isinstance(source, TileSampler) and not source.shuffle:
        return replace(source, thresholds=config.thresholds)
    if isinstance(source, TileStream) and not source.shuffle:
        return source.at(config.thresholds)
    sites = _as_sites(source)
    return source if sites is None else evaluation_sampler(sites, config)


def _refuse_unreadable(source: Any, name: str) -> None:
    if isinstance(source, Iterator):
        raise ValueError(_ONLY_ONCE.format(type(source).__name__))
    if isinstance(source, str | bytes | Mapping) or not (
        isinstance(source, Sampler | Site) or hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    ):
        raise ValueError(
            f"{name} is a {type(source).__name__}: must be a sampler, a site or several, or an iterable that "
            "yields batches"
        )
    if length(source) == 0:
        raise ValueError(f"{name} yields no batch: give some, or None where it may be left out")


def length(source: Any) -> int | None:
    """Batches in a source; None where only reading it tells."""
    if isinstance(source, Sampler):
        return source.steps_per_epoch
    try:
        return len(source)
    except TypeError:
        return None


def _as_sites(source: Any) -> list[Site] | None:
    if isinstance(source, Site):
        return [source]
    if isinstance(source, list | tuple) and source and all(isinstance(item, Site) for item in source):
        return list(source)
    return None


def steps_per_epoch(source: BatchSource) -> int:
    """Batches in an epoch of a training source; one without a length is read once to count them.

    Raises:
        ValueError: it yields nothing, or can be read only once.
    """
    _refuse_unreadable(source, "data.train")
    steps = length(source)
    if steps is None:
        assert not isinstance(source, Sampler)
        steps = sum(1 for _ in source)
    if not steps:
        raise ValueError("data.train yields no batch")
    return steps


def read_batches(
    source: BatchSource,
    listed: tuple[float, ...] | None = None,
    devices: Devices = ONE_DEVICE,
    epoch: int = 0,
) -> Iterable[Batch | Sampler]:
    """What the compiled step takes: a sampler again and again, or the batches of the pass ``epoch``.

    With ``listed``, one warning is logged where a batch on the host has a threshold that is not among these.
    """
    if isinstance(source, Sampler):
        return repeat(source, source.steps_per_epoch)
    return BatchReader(source, listed=listed, epoch=epoch, devices=devices)


class BatchReader:
    """The batches of one pass over an iterable, all of the size of the first; it knows where it stands.

    A pass that was begun goes on at its next batch. An iterator with ``get_state`` and ``set_state``, as
    those of Grain, is set there; of others the batches before are read and dropped. Items that are samplers,
    such as those of a `TileStream`, are for the compiled step to make batches of, and pass as they are.

    Args:
        source: yields batches; by ``source.epoch(epoch)`` where it has that method, as its order may be a
            function of the epoch's number.
        first: batches of the pass that were read before.
        state: as `state` gave it then; None where it is not known.
        resumed: whether the pass belongs to a training that was begun before: a warning is logged where the
            order of its batches may not be the one that it would have been.
        listed: see `read_batches`.
        epoch: number of the pass, from 0.
        devices: that share each batch, filled up to a multiple of them; of several processes, each gives its
            own part.
    """

    def __init__(
        self,
        source: Iterable[Any],
        first: int = 0,
        state: dict[str, Any] | None = None,
        resumed: bool = False,
        listed: tuple[float, ...] | None = None,
        epoch: int = 0,
        devices: Devices = ONE_DEVICE,
    ):
        self._devices = devices
        self._listed, self._size = listed, (state or {}).get("size", 0)
        self._iterator = _pass_over(source, epoch)
        saved = (state or {}).get("iterator")
        if first and saved is not None:
            if not hasattr(self._iterator, "set_state"):
                raise ValueError(
                    f"the training was stopped in an iterator that can tell its place, which that of "
                    f"{type(source).__name__} cannot: go on with the same kind of data"
                )
            cast(Any, self._iterator).set_state(_decoded(saved))
        else:
            self._skip(first)
        if resumed and not (isinstance(source, list | tuple) or hasattr(self._iterator, "get_state")):
            logging.getLogger(__name__).warning(_ORDER, first, type(source).__name__)

    def __iter__(self) -> Iterator[Batch | Sampler]:
        return self

    def __next__(self) -> Batch | Sampler:
        item = next(self._iterator)
        if isinstance(item, Sampler):
            return item
        batch = as_batch(item)
        if self._listed is not None:
            warn_of_unlisted(batch.threshold, self._listed)
        self._size = self._size or self._filled_up(batch)
        return self._devices.share(fill_up(batch, self._size))

    def state(self) -> dict[str, Any]:
        """Where the pass stands, as JSON."""
        get_state = getattr(self._iterator, "get_state", None)
        return {"size": self._size, "iterator": None if get_state is None else _encoded(get_state())}

    def unread(self) -> dict[str, int]:
        """The metric ``unread_tiles`` of a stream: how many up to here; of other sources nothing."""
        iterator = self._iterator
        return {"unread_tiles": len(iterator.unread)} if isinstance(iterator, TileEpoch) else {}

    def _skip(self, first: int) -> None:
        for number, item in enumerate(islice(self._iterator, first)):
            if number == 0 and not self._size and not isinstance(item, Sampler):
                self._size = self._filled_up(as_batch(item))

    def _filled_up(self, batch: Batch) -> int:
        """The size of all batches, after the first."""
        here = self._devices.count_here
        return -(-batch.dsm.shape[0] // here) * here


def _pass_over(source: Any, epoch: int) -> Iterator[Any]:
    return iter(source.epoch(epoch) if callable(getattr(source, "epoch", None)) else source)


def _encoded(state: Any) -> Any:
    return {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else state


def _decoded(state: Any) -> Any:
    is_bytes = isinstance(state, Mapping) and state.keys() == {"base64"}
    return base64.b64decode(state["base64"]) if is_bytes else state
