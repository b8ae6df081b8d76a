"""Sources of batches on several devices."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from forestgaps_jax.data.cut_tiles import CutTiles
from forestgaps_jax.data.tile_stream import TileStream
from forestgaps_jax.parallel import Devices
from forestgaps_jax.types import Sampler


def on_devices(source: Any, devices: Devices) -> Any:
    """A source whose batches the devices share.

    A sampler is put whole on each of them, where it makes that device's part of each batch; what a stream has
    read is divided. Other batches are as they were: `BatchReader` divides them.

    Raises:
        ValueError: batches that the devices cannot share evenly.
    """
    if devices.mesh is None:
        return source
    if isinstance(source, TileStream):
        devices.check_batch(source.config.batch_size)
        return replace(source, put=partial(_divide, devices))
    if isinstance(source, Sampler):
        devices.check_batch(jax.eval_shape(source.sample, np.int32(0)).dsm.shape[0])
        return devices.replicate(source)
    return source


def _divide(devices: Devices, tiles: CutTiles) -> CutTiles:
    divided = "tiles", "resolution", "used", "threshold"
    whole = "key", "thresholds", "threshold_range"
    parts = {name: devices.share(getattr(tiles, name)) for name in divided}
    return replace(tiles, **parts, **{name: devices.replicate(getattr(tiles, name)) for name in whole})
