"""Sources of batches on several devices."""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from forestgaps_jax.data.cut_tiles import CutTiles
from forestgaps_jax.data.divided import DividedRasters
from forestgaps_jax.data.reading import length
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.tile_stream import TileStream
from forestgaps_jax.data.unread import Unread
from forestgaps_jax.parallel import Devices, own_share, refuse_different
from forestgaps_jax.types import Sampler


def refuse_uneven(parts: Mapping[str, Any]) -> None:
    """See that all processes have sources of as many batches, held alike, and streams of the same tiles.

    A process that had one batch more would wait for the others in it, for ever.

    Raises:
        ValueError: they have not; in all of them.
    """
    for name, source in parts.items():
        refuse_different(f"the batches and tiles of {name}", repr(_outline(source)))


def _outline(source: Any) -> tuple[Any, ...]:
    """What all processes must have alike; reads nothing."""
    if isinstance(source, TileStream):
        # A part that is not this process's own is not what the others leave to it.
        return len(source), zlib.crc32(source.places.tobytes()), source.share == own_share()
    return length(source), isinstance(getattr(source, "rasters", None), DividedRasters)


def on_devices(source: Any, devices: Devices) -> Any:
    """A source whose batches the devices share.

    A sampler is put on each of them, where it makes that device's part of each batch; its rasters too, unless
    they lie there in parts. What a stream has read is divided. Other batches are as they were: `BatchReader`
    divides them.

    Raises:
        ValueError: batches that the devices cannot share evenly, rasters in parts on other devices, or a
            stream that is another process's share.
    """
    if devices.mesh is None:
        return _replicated(source, devices) if isinstance(source, TileSampler) else source
    if isinstance(source, TileStream):
        devices.check_batch(source.config.batch_size)
        if source.share != own_share():
            raise ValueError(f"a stream has share = {source.share}, in process {own_share()}: leave it out")
        return replace(source, put=partial(_divide, devices), collect=Unread.of_all)
    if isinstance(source, Sampler):
        devices.check_batch(jax.eval_shape(source.sample, np.int32(0)).dsm.shape[0])
        return _replicated(source, devices)
    return source


def _replicated(sampler: Any, devices: Devices) -> Any:
    def placed(part: Any) -> Any:
        return part.on(devices) if isinstance(part, DividedRasters) else devices.replicate(part)

    return jax.tree.map(placed, sampler, is_leaf=lambda part: isinstance(part, DividedRasters))


def _divide(devices: Devices, tiles: CutTiles) -> CutTiles:
    divided = "tiles", "resolution", "used", "threshold"
    whole = "key", "thresholds", "threshold_range"
    parts = {name: devices.share(getattr(tiles, name)) for name in divided}
    return replace(tiles, **parts, **{name: devices.replicate(getattr(tiles, name)) for name in whole})
