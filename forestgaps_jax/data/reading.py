"""How the loop reads its sources: samplers, or whatever yields batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any

from forestgaps_jax.config import Config
from forestgaps_jax.data.batches import as_batch, fill_up
from forestgaps_jax.data.ground import shared_grounds
from forestgaps_jax.data.sources import create_data, evaluation_sampler, training_sampler
from forestgaps_jax.types import Batch, BatchSource, Data, Sampler, Site


def as_data(data: Data | Mapping[str, Any] | Site | Sequence[Site], config: Config) -> Data:
    """Whatever a user trains on, as `Data` of samplers and iterables.

    Args:
        data: a site or several, which are split by blocks; or a `Data` or a mapping with ``train`` and
            perhaps ``val`` and ``test``, each a sampler, an iterable of batches, a site or several.
        config: tiles, split and thresholds.

    Raises:
        ValueError: a mapping with other keys, sites too small, or ground that both trains and tests.
    """
    if (sites := _as_sites(data)) is not None:
        return create_data(sites, config)
    parts = data if isinstance(data, Mapping) else vars(data)
    if "train" not in parts or set(parts) - {"train", "val", "test"}:
        raise ValueError(f"data has keys {sorted(parts)}: must have train, and may have val and test")
    _check_grounds(parts)
    sites = _as_sites(parts["train"])
    return Data(
        train=parts["train"] if sites is None else training_sampler(sites, config),
        val=as_evaluation_source(parts.get("val"), config),
        test=as_evaluation_source(parts.get("test"), config),
    )


def as_evaluation_source(source: Any, config: Config) -> Any:
    """The source, or a sampler over the whole of a site or several."""
    sites = _as_sites(source)
    return source if sites is None else evaluation_sampler(sites, config)


def _as_sites(source: Any) -> list[Site] | None:
    if isinstance(source, Site):
        return [source]
    if isinstance(source, list | tuple) and source and all(isinstance(item, Site) for item in source):
        return list(source)
    return None


def _check_grounds(parts: Mapping[str, Any]) -> None:
    train = _as_sites(parts["train"]) or []
    for part in ("val", "test"):
        for site in _as_sites(parts.get(part)) or []:
            if len(shared_grounds([site, *train])) <= len(shared_grounds(train)):
                raise ValueError(f"{part} site {site.name} shows ground that trains too: give other ground")


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
