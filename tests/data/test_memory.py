"""Whether rasters are streamed, against sizes counted by hand."""

import os
from dataclasses import replace

import pytest

from forestgaps_jax import Config
from forestgaps_jax.data import memory
from forestgaps_jax.data.memory import are_divided, choose, memory_bytes, raster_pixels
from forestgaps_jax.parallel import Devices
from tests.data.test_stream import SHAPE, write_pair

PIXELS = 2 * SHAPE[0] * SHAPE[1]


@pytest.fixture
def rasters(tmp_path):
    pairs = [write_pair(tmp_path, number) for number in range(2)]
    dsm, chm = ([str(pair[side]) for pair in pairs] for side in (0, 1))
    return Config(dsm=dsm, chm=chm)


def holding(monkeypatch, size):
    monkeypatch.setattr(memory, "memory_bytes", lambda devices=1: (float(size), "device"))


def test_a_pixel_of_both_rasters_takes_eight_bytes(rasters, monkeypatch):
    assert raster_pixels(rasters) == PIXELS
    config = replace(rasters, memory_share=0.5)
    holding(monkeypatch, 2 * 8 * PIXELS)
    assert not choose(config).streams
    holding(monkeypatch, 2 * 8 * PIXELS - 1)
    choice = choose(config)
    assert choice.streams
    assert "more than 0.5 of the" in choice.reason
    assert choice.reason.count("\n") == 0
    assert not choose(replace(config, stream="never")).streams


def test_always_and_never_win(rasters, monkeypatch):
    holding(monkeypatch, 1e12)
    assert choose(replace(rasters, stream="always")).streams
    assert not choose(rasters).streams
    monkeypatch.setattr(memory, "MOST_PIXELS", PIXELS - 1)
    assert "2^31" in choose(rasters).reason
    assert choose(rasters).streams
    assert not choose(Config(stream="always")).streams  # virtual forests


@pytest.mark.parametrize("other", [{"chm_only": True}, {"virtual_share": 0.5}], ids=str)
def test_what_is_made_in_memory_cannot_be_streamed(rasters, monkeypatch, other):
    other = {name: rasters.chm[:1] if value is True else value for name, value in other.items()}
    config = replace(rasters, **other)
    holding(monkeypatch, 1e12)
    assert not choose(config).streams
    holding(monkeypatch, 1)
    for settings in (config, replace(config, stream="always")):
        with pytest.raises(ValueError, match=rf"{next(iter(other))} = .*only pairs can be streamed"):
            choose(settings)


def test_the_least_of_machine_and_container_counts_on_a_cpu(tmp_path):
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_bytes(()) == (machine, "machine")
    paths = [tmp_path / name for name in ("none", "max", "small")]
    paths[1].write_text("max\n")
    paths[2].write_text("1000000\n")
    assert memory_bytes([str(path) for path in paths[:2]]) == (machine, "machine")
    assert memory_bytes([str(path) for path in paths]) == (1e6, "machine")


@pytest.fixture
def four_devices(monkeypatch):
    """Of a process; each has memory for a quarter of both rasters and 10 bytes, at a share of 0.5."""
    monkeypatch.setattr(Devices, "count_here", 4)
    monkeypatch.setattr(memory, "_device_bytes", lambda: 2 * 8 * PIXELS / 4 + 10.0)
    return Devices()


def test_devices_hold_rasters_together_where_one_would_be_too_small(rasters, four_devices):
    config = replace(rasters, memory_share=0.5)
    assert are_divided(PIXELS, config, four_devices)
    assert not are_divided(PIXELS // 4, config, four_devices)
    assert are_divided(1, replace(config, shard_rasters="always"), four_devices)
    assert not are_divided(PIXELS, replace(config, shard_rasters="never"), four_devices)
    choice = choose(config)
    assert not choice.streams
    assert "held in parts by the devices" in choice.reason
    assert "of the 4 devices" in choice.reason


def test_rasters_are_streamed_where_the_devices_may_not_hold_them_together(rasters, four_devices):
    choice = choose(replace(rasters, memory_share=0.5, shard_rasters="never"))
    assert choice.streams
    assert "of the device (" in choice.reason
    assert choose(replace(rasters, memory_share=0.4)).streams


def test_one_device_holds_all(rasters, monkeypatch):
    monkeypatch.setattr(memory, "_device_bytes", lambda: 1.0)
    assert not are_divided(PIXELS, replace(rasters, shard_rasters="always"), Devices())
