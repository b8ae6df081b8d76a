"""Streams that are split by blocks, weighed, and shared between processes."""

import threading
from collections import Counter
from dataclasses import replace
from itertools import combinations

import jax
import numpy as np
import pytest
from rasterio.transform import Affine

from forestgaps_jax import train
from forestgaps_jax.data import create_data, create_stream, find_pairs, read_site, split_blocks, stream
from forestgaps_jax.data.ground import Rectangle
from forestgaps_jax.data.tile_stream import TileStream
from forestgaps_jax.data.windows import open_pair
from forestgaps_jax.statistics import gap_shares
from tests.data.test_rasters import LEFT, TOP
from tests.data.test_stream import write_pair


def everywhere_known(folder, number, shape=(96, 112), **options):
    return write_pair(folder, number, shape, nodata=-1e6, **options)


def at(column, row=0, side=1.0):
    place = {"place": Affine(side, 0, LEFT + column, 0, -side, TOP - row)}
    return {"of_dsm": place, "of_chm": place}


def pixels_of(source: TileStream) -> set[tuple[float, float]]:
    """Ground coordinates of the middles of all pixels of its tiles, of rasters with pixels of 1 m."""
    found = set()
    for index, row, column in source.places.tolist():
        grid = source.pairs[index].grid
        for y in range(source.config.tile_size):
            for x in range(source.config.tile_size):
                found.add((round(grid.left + column + x, 6), round(grid.top - row - y, 6)))
    return found


# The split


def test_places_are_those_of_sites_whose_pixels_are_all_known(tmp_path, config):
    config = replace(config, split_buffer=5.0, min_valid_fraction=0.0)
    pairs = [write_pair(tmp_path, number, (96, 112 + 8 * number)) for number in range(2)]
    data, split = create_stream(pairs, config), split_blocks([read_site(*pair) for pair in pairs], config)
    for part, expected in (("train", split.train), ("val", split.val), ("test", split.test)):
        source = getattr(data, part)
        assert source.shuffle == (part == "train")
        np.testing.assert_array_equal(source.places, expected)
        assert len(expected)


def test_no_pixel_serves_two_parts_nor_lies_within_the_buffer_also_in_another_raster(tmp_path, config):
    """Rasters that overlap, and one that only touches them, as the sheets of a map do."""
    config = replace(config, split_buffer=7.0, val_fraction=0.2, test_fraction=0.2)
    places = [at(0), at(50, 30), at(112, 0)]
    pairs = [everywhere_known(tmp_path, number, **place) for number, place in enumerate(places)]
    data = create_stream(pairs, config)
    parts = [pixels_of(source) for source in (data.train, data.val, data.test)]
    assert not any(one & other for one, other in combinations(parts, 2))
    trained = np.array(sorted(parts[0]))
    for x, y in sorted(parts[1] | parts[2])[::17]:
        apart = np.abs(trained - (x, y)).max(axis=1)
        assert apart.min() >= 7.0


def test_pairs_on_other_grounds_and_a_part_that_is_not_wanted(tmp_path, config):
    pairs = [everywhere_known(tmp_path, 0)]
    assert create_stream(pairs, replace(config, test_fraction=0.0)).test is None
    with pytest.raises(ValueError, match="too few to train on one"):
        create_stream([everywhere_known(tmp_path, 1, (20, 20))], config)


def test_the_common_ground_of_a_shifted_pair_is_where_it_lies(tmp_path):
    pair = everywhere_known(tmp_path, 0, of_chm=at(8, 5)["of_chm"])
    opened, site = open_pair(*pair, name="Eawy"), read_site(*pair)
    assert opened.name == "Eawy"
    assert opened.grid == site.grid
    assert opened.shape == site.shape
    assert Rectangle.of(opened) == Rectangle.of(site)


def test_a_folder_or_a_manifest_names_the_pairs(tmp_path, config):
    pairs = [everywhere_known(tmp_path / "r", number) for number in range(2)]
    for source in (stream(tmp_path / "r", config), create_stream(str(tmp_path / "r"), config).train):
        assert [pair.dsm.path for pair in source.pairs] == [pair[0] for pair in pairs]
    assert [p.dsm for p in find_pairs(tmp_path / "r")] == [pair[0] for pair in pairs]
    (tmp_path / "l.csv").write_text(
        "dsm,chm,weight,name\nr/0_DSM.tif,r/0_CHM.tif,0,\nr/1_DSM.tif,r/1_CHM.tif,2,one\n"
    )
    source = stream(tmp_path / "l.csv", config)
    assert source.weights == (0.0, 2.0)
    assert [pair.name for pair in source.pairs] == ["0", "one"]


def test_training_on_a_split_stream_learns_as_on_the_device(state, config, tmp_path):
    pairs = [everywhere_known(tmp_path, 0)]
    config = replace(config, epochs=1)
    _, history = train(state, config, create_stream(pairs, config))
    _, expected = train(state, config, create_data([read_site(*pairs[0])], config))
    pixels = [h["val_metrics"][0]["n_pixels"] for h in (history, expected)]
    assert pixels[0] == pixels[1]
    assert np.isfinite(history["train_loss"][0])


# Weights


def test_pairs_come_as_often_as_they_weigh(tmp_path, config):
    pairs = [everywhere_known(tmp_path, number) for number in range(3)]
    config = replace(config, site_weights=(1.0, 0.0, 3.0), batch_size=8)
    source = stream(pairs, config)
    for epoch in range(2):
        batches = [list(item.names) for item in source.epoch(epoch)]
        for names in batches:
            count = Counter(name.partition("_")[0] for name in names)
            assert abs(count["0"] - 2) < 1
            assert abs(count["2"] - 6) < 1
            assert sum(count.values()) == 8
    drawn = {tuple(names) for epoch in range(2) for names in (list(i.names) for i in source.epoch(epoch))}
    assert len(drawn) == 2 * len(source)
    assert not stream(pairs, config, shuffle=False).weights


@pytest.mark.parametrize(
    ("weights", "says"),
    [((1.0,), "one for each pair, here 2"), ((0.0, 0.0), "no pair that has training tiles")],
)
def test_weights_that_do_not_fit(tmp_path, config, weights, says):
    pairs = [everywhere_known(tmp_path, number) for number in range(2)]
    with pytest.raises(ValueError, match=says):
        stream(pairs, replace(config, site_weights=weights))


# Shares


def parts_of(item):
    """What a batch is made of, as arrays on the host."""
    arrays = (item.tiles, item.resolution, item.used, item.threshold)
    return [np.asarray(array) for array in arrays if array is not None]


@pytest.mark.parametrize("processes", [2, 3, 6])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("weights", [(), (1.0, 2.0)], ids=["even", "weighted"])
def test_the_shares_one_after_the_other_are_the_batch_of_one_process(
    tmp_path, config, processes, shuffle, weights
):
    pairs = [write_pair(tmp_path, number, (70, 90 + 10 * number)) for number in range(2)]
    config = replace(config, batch_size=6, site_weights=weights)
    whole = stream(pairs, config, shuffle=shuffle)
    assert whole.slots % 6 or weights
    shares = [stream(pairs, config, shuffle=shuffle, share=(n, processes)) for n in range(processes)]
    assert {len(share) for share in shares} == {len(whole)}
    for together, *items in zip(whole.epoch(1), *(share.epoch(1) for share in shares), strict=True):
        for expected, *found in zip(parts_of(together), *map(parts_of, items), strict=True):
            np.testing.assert_array_equal(np.concatenate(found), expected)
        assert [name for item in items for name in item.names] == list(together.names)


def test_a_place_in_an_epoch_is_the_same_for_any_number_of_processes(tmp_path, config):
    pair = write_pair(tmp_path)
    epoch = stream([pair], config).epoch(0)
    for _ in range(3):
        next(epoch)
    expected, states = parts_of(next(epoch))[0], []
    for n in range(2):
        other = stream([pair], config, share=(n, 2)).epoch(0)
        for _ in range(3):
            next(other)
        states.append(other.get_state())
    assert states[0] == states[1]
    again = stream([pair], config).epoch(0)
    again.set_state(states[0])
    np.testing.assert_array_equal(parts_of(next(again))[0], expected)


def test_all_processes_count_the_same_gaps(tmp_path, config):
    pair = write_pair(tmp_path)
    expected = gap_shares(stream([pair], config), config.thresholds)
    assert gap_shares(stream([pair], config, share=(1, 2)), config.thresholds) == expected


@pytest.mark.parametrize(
    ("share", "says"),
    [((2, 2), "share = "), ((-1, 2), "share = "), ((0, 3), "batch_size = 4.*multiple of the 3")],
)
def test_shares_that_cannot_be(tmp_path, config, share, says):
    with pytest.raises(ValueError, match=says):
        stream([write_pair(tmp_path)], config, share=share)


# Ahead


def test_batches_are_put_ahead_of_use_in_another_thread_and_never_by_far(tmp_path, config):
    source, put = stream([write_pair(tmp_path)], config), []
    there = threading.Semaphore(0)

    def note(batch):
        put.append(threading.get_ident())
        there.release()
        return jax.device_put(batch)

    epoch = replace(source, put=note).epoch(0)
    first = next(epoch)
    for _ in range(3):
        assert there.acquire(timeout=30)
    assert isinstance(first.tiles, jax.Array)
    assert set(put) != {threading.get_ident()}
    assert 3 <= len(put) <= 5
    # What was put ahead is not given out.
    again = source.epoch(0)
    again.set_state(epoch.get_state())
    np.testing.assert_array_equal(parts_of(next(again))[0], parts_of(next(epoch))[0])
