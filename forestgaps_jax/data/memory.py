"""Whether rasters fit into memory, told from their headers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from forestgaps_jax.config import Config
from forestgaps_jax.data.geotiff import CHM_BOUNDS, DSM_BOUNDS, MOST_PIXELS, open_heights
from forestgaps_jax.parallel import Devices

_BYTES = 8
"""Of a pixel: DSM and CHM, as float32."""

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may take."""


class Choice(NamedTuple):
    """How rasters are read, and why.

    Attributes:
        streams: from disk while training goes on; otherwise they are held on the device.
        reason: one line.
    """

    streams: bool
    reason: str


def choose(config: Config) -> Choice:
    """Whether the rasters of settings are streamed, as ``stream`` and ``memory_share`` say.

    With ``stream = "auto"`` they are where they would take more than ``memory_share`` of the memory of the
    devices that may hold them together (see `are_divided`), or of the machine (or its container), or have
    more pixels than can be held at once. Virtual forests are made in memory, and never streamed.

    Args:
        config: with ``sites`` written out; see `with_pairs`.

    Raises:
        FileNotFoundError: a raster is missing.
        ValueError: a raster that cannot be read as heights; or ``chm_only`` or ``virtual_share`` beside what
            is to be streamed.
        ImportError: rasterio is not installed.
    """
    if config.stream == "never" or not (config.dsm or config.chm_only):
        return Choice(False, "rasters are held on the device")
    if config.stream == "always":
        _refuse_unstreamable(config, "stream = 'always'")
        return Choice(True, "rasters are streamed from disk (stream = always)")
    pixels = raster_pixels(config)
    devices = Devices.of(config.devices, config.fsdp)
    together = 1 if config.shard_rasters == "never" else devices.count_here
    needed, (memory, whose) = _BYTES * pixels, memory_bytes(devices=together)
    allowed = config.memory_share * memory
    share = f"{config.memory_share:g} of the {_gigabytes(memory)} of the {whose} (memory_share)"
    if needed <= allowed and pixels <= MOST_PIXELS:
        how = "in parts by the devices" if are_divided(pixels, config, devices) else "on the device"
        return Choice(False, f"rasters are held {how}: {_gigabytes(needed)}, within {share}")
    over = f"more than {share}" if needed > allowed else f"{pixels} pixels, and 2^31 or more cannot be held"
    reason = f"rasters are streamed from disk: {_gigabytes(needed)}, {over}"
    _refuse_unstreamable(config, reason)
    return Choice(True, reason)


def raster_pixels(config: Config) -> int:
    """Pixels of the grids that rasters are read onto, all together; only headers are read."""
    pixels = 0
    for paths, bounds in ((config.dsm, DSM_BOUNDS), (config.chm_only, CHM_BOUNDS)):
        for path in paths:
            with open_heights(path, bounds) as file:
                pixels += file.shape[0] * file.shape[1]
    return pixels


def are_divided(pixels: int, config: Config, devices: Devices) -> bool:
    """Whether the devices of a process hold rasters of so many pixels together, each a part.

    With ``shard_rasters = "auto"`` they do where one device would spend more than ``memory_share`` of its
    memory on them. CPU devices have no memory of their own.
    """
    if devices.count_here == 1 or config.shard_rasters == "never":
        return False
    return config.shard_rasters == "always" or _BYTES * pixels > config.memory_share * _device_bytes()


def memory_bytes(limits: Sequence[str] = _LIMITS, devices: int = 1) -> tuple[float, str]:
    """The least memory that rasters have to fit into, and whose it is; infinite where nothing tells.

    Args:
        limits: files that hold the bytes that a container may take.
        devices: how many hold them together.
    """
    machine = float("inf")
    if hasattr(os, "sysconf"):  # Windows does not tell
        machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in limits:
        if Path(path).is_file() and (text := Path(path).read_text().strip()).isdecimal():
            machine = min(machine, float(text))
    there = devices * _device_bytes()
    owner = "device" if devices == 1 else f"{devices} devices"
    return (there, owner) if there < machine else (machine, "machine")


def _device_bytes() -> float:
    stats = jax.local_devices()[0].memory_stats() or {}  # a CPU has none: its memory is the machine's
    return float(stats.get("bytes_limit", "inf"))


def _refuse_unstreamable(config: Config, why: str) -> None:
    for name, value in (("chm_only", config.chm_only), ("virtual_share", config.virtual_share)):
        if value:
            raise ValueError(
                f"{name} = {value}, and {why}: only pairs can be streamed; leave {name} out, or set "
                "stream = 'never' where memory is large enough"
            )


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
