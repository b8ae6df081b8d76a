"""Tiles read from disk with what the opening needs around them, against the opening of the whole raster."""

import os

import numpy as np
import pytest

from forestgaps_jax import Config
from forestgaps_jax.data import read_site
from forestgaps_jax.data.windows import open_pair
from forestgaps_jax.inference import opening_baseline, score_baselines
from forestgaps_jax.inference.baseline import opening_reach
from forestgaps_jax.inference.opened_tiles import opened_tiles
from tests.data.test_stream import write_pair

SHAPE, SIZE = (250, 300), 32


@pytest.mark.parametrize("resolution", [0.5, 1.0, 1.7, 3.0])
def test_the_reach_is_where_a_pixel_stops_to_matter(resolution):
    reach = opening_reach(resolution)
    dsm = np.random.default_rng(0).uniform(0, 30, (2 * reach + 21, 2 * reach + 21))
    dsm = dsm.astype(np.float32)
    whole = opening_baseline(dsm, resolution)
    centre = np.s_[reach + 10 : reach + 11, reach + 10 : reach + 11]
    cut = opening_baseline(dsm[10:-10, 10:-10], resolution)
    assert cut[reach, reach] == whole[centre]


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_tiles_from_disk_are_those_of_the_whole_raster(tmp_path, size):
    paths = [write_pair(tmp_path / "r", number, SHAPE, size=size) for number in range(2)]
    places = np.array([[0, 0, 0], [1, 100, 130], [0, 218, 268], [0, 90, 0], [1, 3, 200]], np.int32)
    sites, pairs = [read_site(*pair) for pair in paths], [open_pair(*pair) for pair in paths]
    tiles = list(opened_tiles(pairs, places, SIZE))
    for tile, (index, row, column) in zip(tiles, places, strict=True):
        window = np.s_[row : row + SIZE, column : column + SIZE]
        whole = opening_baseline(sites[index].dsm, size)
        np.testing.assert_array_equal(tile.opening, whole[window])
        np.testing.assert_array_equal(tile.chm, sites[index].chm[window])
        np.testing.assert_array_equal(tile.valid, sites[index].valid[window])
    config = Config(tile_size=SIZE, thresholds=(5.0, 15.0))
    np.testing.assert_equal(score_baselines(pairs, places, config), score_baselines(sites, places, config))


def test_a_tile_that_cannot_be_read_counts_nothing(tmp_path):
    paths = write_pair(tmp_path / "r", 0, SHAPE)
    pair = open_pair(*paths)
    os.truncate(paths[1], 3000)
    (tile,) = opened_tiles([pair], np.array([[0, 218, 268]], np.int32), SIZE)
    assert not tile.valid.any()
