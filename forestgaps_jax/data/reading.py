"""How the loop reads its sources: samplers, or whatever yields batches."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, repeat
from typing import Any

from forestgaps_jax.data.batches import as_batch, fill_up
from forestgaps_jax.types import Batch, BatchSource, Data, Sampler


def as_data(data: Data | Mapping[str, Any]) -> Data:
    """A mapping with keys train, val and test as `Data`."""
    if isinstance(data, Data):
        return data
    if not isinstance(data, Mapping) or "train" not in data or set(data) - {"train", "val", "test"}:
        given = sorted(data) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"data is {given}: must be a Data or a mapping with train[, val, test]")
    return Data(**data)


def steps_per_epoch(source: BatchSource) -> int:
    """Batches in an epoch of a training source; one without a length is read once to count them.

    Raises:
        ValueError: it yields nothing, or can be read only once.
    """
    if isinstance(source, Sampler):
        return source.steps_per_epoch
    if isinstance(source, Iterator):
        raise ValueError(
            f"data.train is a {type(source).__name__}, which can be read only once: "
            "give a list of batches, or an object whose __iter__ starts anew"
        )
    steps = len(source) if hasattr(source, "__len__") else sum(1 for _ in source)  # type: ignore[arg-type]
    if not steps:
        raise ValueError("data.train yields no batch")
    return steps


def read_batches(source: BatchSource, first: int = 0) -> Iterable[Batch | Sampler]:
    """What the compiled step takes, from batch ``first`` on: a sampler again and again, or batches."""
    if isinstance(source, Sampler):
        yield from repeat(source, source.steps_per_epoch - first)
        return
    size = 0
    for item in islice(source, first, None):
        batch = as_batch(item)
        size = size or batch.dsm.shape[0]
        yield fill_up(batch, size)
