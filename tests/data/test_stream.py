"""Tiles read from disk while training goes on, against the rasters and the sampler on the device."""

import gc
import inspect
import logging
import os
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rasterio.transform import Affine

from forestgaps_jax import Callback, create_state, evaluate, train
from forestgaps_jax.callbacks.tiles import choose_tiles
from forestgaps_jax.data import read_site, stream
from forestgaps_jax.data.reading import BatchReader, as_evaluation_source, read_batches, steps_per_epoch
from forestgaps_jax.data.sources import evaluation_sampler, training_sampler
from forestgaps_jax.data.windows import WindowReader, open_pair
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.statistics import gap_shares
from forestgaps_jax.types import Batch, Sampler
from tests.data.test_rasters import LEFT, TOP, write
from tests.test_loop import StopAfter, equal

SHAPE = 70, 90
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}
sample = jax.jit(lambda source, step: source.sample(step))


def heights(seed, shape=SHAPE):
    """A surface and a rough canopy with holes."""
    rng = np.random.default_rng(seed)
    chm = rng.uniform(0, 30, shape).astype(np.float32)
    dsm = (2 * chm + 100 + rng.uniform(0, 1, shape)).astype(np.float32)
    dsm[rng.random(shape) < 0.03], chm[rng.random(shape) < 0.03] = -9999, -9999
    return dsm, chm


def write_pair(folder, number=0, shape=SHAPE, of_dsm=None, of_chm=None, **options):
    folder.mkdir(exist_ok=True)
    options = {"nodata": -9999.0} | TILED | options
    dsm, chm = heights(number, shape)
    return (
        write(folder / f"{number}_DSM.tif", dsm, **(options | (of_dsm or {}))),
        write(folder / f"{number}_CHM.tif", chm, **(options | (of_chm or {}))),
    )


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path / "rasters")


@pytest.fixture
def run_config(config, tmp_path):
    return replace(
        config, name="run", runs_dir=str(tmp_path / "runs"), vis_save_frequency=0, use_tensorboard=False
    )


def batches_of(source, epoch=0):
    """As the loop gets them, as NumPy arrays; steps are counted on over the epochs."""
    first = epoch * len(source)
    items = BatchReader(source, epoch=epoch)
    return [jax.device_get(sample(item, jnp.int32(n))) for n, item in enumerate(items, first)]


def together(batches) -> Batch:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def samples_of(batch):
    """What there is to know of each sample that has a valid pixel."""
    parts = (batch.dsm, batch.chm, batch.mask, batch.valid, batch.threshold, batch.resolution)
    used = batch.valid.any(axis=(1, 2, 3))
    return Counter(tuple(part[i].tobytes() for part in parts) for i in np.flatnonzero(used))


def order_of(source, epoch):
    return [batch.dsm.tobytes() for batch in batches_of(source, epoch)]


# What is read


def test_evaluation_reads_the_same_samples_as_the_sampler_of_the_site(pair, config):
    source = stream([pair], config, shuffle=False)
    sampler = evaluation_sampler([read_site(*pair)], config)
    expected = together([sample(sampler, jnp.int32(n)) for n in range(sampler.steps_per_epoch)])
    found = together(batches_of(source))
    assert len(source) == sampler.steps_per_epoch
    assert samples_of(found) == samples_of(jax.device_get(expected))
    # Tile after tile, each at all thresholds: a block is read once.
    assert found.threshold[:4].tolist() == [5.0, 15.0, 5.0, 15.0]
    np.testing.assert_array_equal(found.dsm[0], found.dsm[1])


def test_training_reads_every_tile_of_the_sampler_once_an_epoch_in_an_order_of_seed_and_epoch(pair, config):
    config = replace(config, augment=False, thresholds=(5.0,))
    source = stream([pair], config)
    sampler = training_sampler([read_site(*pair)], config)
    expected = samples_of(
        jax.device_get(together([sample(sampler, jnp.int32(n)) for n in range(len(source))]))
    )
    epochs = [batches_of(source, epoch) for epoch in range(3)]
    assert all(samples_of(together(epoch)) == expected for epoch in epochs)
    assert set(expected.values()) == {1}
    orders = [order_of(source, epoch) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    anew = stream([pair], replace(config))
    assert [order_of(anew, epoch) for epoch in (2, 0)] == [orders[2], orders[0]]
    assert order_of(stream([pair], replace(config, seed=config.seed + 1)), 0) != orders[0]
    assert [batch.dsm.tobytes() for batch in together_items(iter(source))] == orders[0]


def together_items(items):
    return [jax.device_get(sample(item, jnp.int32(0))) for item in items]


@pytest.mark.parametrize("drawn", [{}, {"threshold_range": (3.0, 25.0)}, {"thresholds_per_tile": 2}], ids=str)
def test_masks_are_those_of_the_canopy_and_draws_are_those_of_the_sampler(pair, config, drawn):
    config = replace(config, **drawn)
    source = stream([pair], config)
    sampler = training_sampler([read_site(*pair)], config)
    for epoch in range(2):
        for number, batch in enumerate(batches_of(source, epoch), epoch * len(source)):
            heights = batch.threshold.reshape(len(batch.threshold), 1, 1, -1)
            valid = np.broadcast_to(batch.valid, batch.mask.shape)
            np.testing.assert_array_equal(batch.mask[valid], (batch.chm < heights)[valid])
            np.testing.assert_array_equal(batch.valid, np.isfinite(batch.dsm) & np.isfinite(batch.chm))
            assert batch.mask.dtype == np.float32
            np.testing.assert_array_equal(batch.threshold, sample(sampler, jnp.int32(number)).threshold)


def test_the_last_batch_is_filled_up_with_tiles_that_count_nothing(pair, config):
    config = replace(config, tile_overlap=0.0)
    source = stream([pair], config)
    assert source.slots % config.batch_size
    batches = batches_of(source)
    assert {batch.dsm.shape for batch in batches} == {(4, 16, 16, 1)}
    used = batches[-1].valid.any(axis=(1, 2, 3))
    assert used.sum() == source.slots % config.batch_size
    assert np.isnan(batches[-1].dsm[~used]).all()


def test_several_pairs_of_different_pixels(tmp_path, config):
    pairs = [write_pair(tmp_path / "r", n, (40 + 8 * n, 50), size=1.0 + n) for n in range(2)]
    config = replace(config, augment=False, thresholds=(5.0,))
    found = samples_of(together(batches_of(stream(pairs, config))))
    sites = [read_site(*pair) for pair in pairs]
    sampler = training_sampler(sites, config)
    steps = range(sampler.steps_per_epoch)
    assert found == samples_of(jax.device_get(together([sample(sampler, jnp.int32(n)) for n in steps])))
    assert len({resolution for *_, resolution in found}) == 2


SHIFTS = [(0, 0), (5, 7), (-4, 3), (6, -8)]


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
@pytest.mark.parametrize("layout", [TILED, {}, {"north": True}], ids=["tiled", "strips", "rows run north"])
def test_windows_are_those_of_the_site_also_where_the_rasters_are_shifted(tmp_path, config, shift, layout):
    def place(row, column, north):
        if north:  # as many rows further south, and up from there
            return Affine(1, 0, LEFT + column, 0, 1, TOP - row - SHAPE[0])
        return Affine(1, 0, LEFT + column, 0, -1, TOP - row)

    layout = dict(layout)
    north = layout.pop("north", False)
    folder = tmp_path / "r"
    folder.mkdir()
    paths = []
    for name, raster, at in zip(("DSM", "CHM"), heights(0), ((0, 0), shift), strict=True):
        paths.append(write(folder / f"{name}.tif", raster, nodata=-9999.0, place=place(*at, north), **layout))
    opened, site = open_pair(*paths), read_site(*paths)
    assert opened.shape == site.shape
    whole, read = np.stack([site.dsm, site.chm], axis=-1), WindowReader()
    for row, column in [(0, 0), (3, 17), (site.shape[0] - 16, site.shape[1] - 16)]:
        window = read(opened, row, column, 16)
        np.testing.assert_array_equal(window, whole[row : row + 16, column : column + 16])


def test_blocks_that_are_left_out_are_not_known(tmp_path):
    """GDAL reads them as 0, which is a height."""
    dsm, chm = heights(0)
    chm[16:48, 32:64] = 0
    paths = write(tmp_path / "a_DSM.tif", dsm, nodata=-9999.0), tmp_path / "a_CHM.tif"
    write(paths[1], np.where(chm == -9999, 5, chm), sparse_ok=True, **(TILED | {"compress": "none"}))
    opened, site = open_pair(*paths), read_site(*paths)
    assert np.isnan(site.chm[16:48, 32:64]).all()
    for row, column in [(0, 20), (30, 40), (20, 60)]:
        window = WindowReader()(opened, row, column, 24)
        np.testing.assert_array_equal(window[..., 1], site.chm[row : row + 24, column : column + 24])


# In the loop


def test_a_training_learns_from_it_compiles_once_and_knows_its_length(state, run_config, pair, caplog):
    source = stream([pair], run_config)
    assert steps_per_epoch(source) == len(source) == len(list(read_batches(source)))
    assert all(isinstance(item, Sampler) for item in source)
    traces = []

    def counting(*args, **kwargs):
        traces.append(kwargs.get("train", False))
        return state.apply(*args, **kwargs)

    data = {"train": source, "val": stream([pair], run_config, shuffle=False)}
    with caplog.at_level(logging.WARNING):
        trained, history = train(replace(state, apply=counting), run_config, data)
    assert sorted(traces) == [False, True]
    assert "compiled again" not in caplog.text
    assert "skipped" not in caplog.text
    assert int(trained.step) == run_config.epochs * len(source)
    assert history["val_loss"][1] < history["val_loss"][0]
    n_valid = sum(int(batch.valid.sum()) for batch in batches_of(source))
    assert history["train_metrics"][0]["n_pixels"] == n_valid


def test_evaluation_gives_the_metrics_of_the_site(state, config, pair):
    config = replace(config, loss_type="bce")  # Dice is pooled over a batch, and these fall otherwise
    site = read_site(*pair)
    expected = evaluate(state, config, site)
    found = evaluate(state, config, stream([pair], config, shuffle=False))
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    other = replace(config, thresholds=(7.5,))
    found = evaluate(state, other, stream([pair], config, shuffle=False))
    assert found["confusion_matrix"] == evaluate(state, other, site)["confusion_matrix"]


def test_a_network_of_heights_reads_each_tile_once(pair, config):
    config = replace(config, model_name="unet_regression", loss_type="huber")
    state = create_state(create_model_from_config(config), config)
    found = evaluate(state, config, stream([pair], config, shuffle=False))
    expected = evaluate(state, config, read_site(*pair))
    assert found["n_pixels"] == expected["n_pixels"]
    train(state, replace(config, epochs=1), {"train": stream([pair], config)})


@pytest.mark.parametrize("place", [{"step": 3}, {"step": 9}, {"epoch": 0}], ids=str)
def test_a_training_stopped_within_an_epoch_ends_bit_identical(state, run_config, pair, place, tmp_path):
    data = {"train": stream([pair], run_config)}
    whole, expected = train(state, replace(run_config, name=""), data)
    train(state, run_config, data, [StopAfter(**place)])
    done, history = train(state, run_config, {"train": stream([pair], run_config)}, resume="auto")
    assert equal(done, whole)
    for name in ("train_loss", "train_metrics", "lr"):
        assert history[name] == expected[name]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_without_a_saved_place_the_batches_before_are_dropped(state, config, pair, caplog):
    data = {"train": stream([pair], config)}
    part, _ = train(state, config, data, [StopAfter(step=9)])
    assert equal(train(part, config, data)[0], train(state, config, data)[0])
    assert "NOT RESUMED" not in caplog.text


def test_an_iterator_goes_on_from_its_state(pair, config):
    source = stream([pair], config)
    epoch = source.epoch(3)
    for _ in range(2):
        next(epoch)
    state = epoch.get_state()
    rest = [item.tiles.tobytes() for item in epoch]
    other = source.epoch(3)
    other.set_state(state)
    assert [item.tiles.tobytes() for item in other] == rest
    assert len(rest) == len(source) - 2
    assert list(epoch) == []


def test_other_readers_of_sources_take_it(pair, config):
    source = stream([pair], config, shuffle=False)
    assert as_evaluation_source(source, config).config == config
    tiles = choose_tiles(source, 2)
    assert tiles is not None
    assert tiles.threshold.tolist() == [5.0, 15.0]
    site = read_site(*pair)
    shares = gap_shares(source, (5.0, 15.0))
    assert shares == pytest.approx(gap_shares(evaluation_sampler([site], config), (5.0, 15.0)))


# Files that break


def cut_off(path: Path, kept: float):
    os.truncate(path, int(path.stat().st_size * kept))


class CutOff(Callback):
    """Cuts a file off after a batch of an epoch."""

    def __init__(self, path, epoch=0, batch=1, kept=0.4):
        self.path, self.epoch, self.batch, self.kept = path, epoch, batch, kept

    def on_batch_end(self, batch, logs=None):
        if (logs["epoch"], batch) == (self.epoch, self.batch):
            cut_off(self.path, self.kept)


LARGE = 400, 400


@pytest.fixture
def large(tmp_path, config):
    """A sound pair, and one that will break; so many blocks that few are read when a batch was."""
    pairs = [write_pair(tmp_path / "r", 0), write_pair(tmp_path / "r", 1, LARGE)]
    return pairs, replace(config, tile_overlap=0.0, epochs=2, batch_size=8)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if "tiles were skipped" in r.getMessage()]


def assert_true_or_unknown(batches, sites):
    """Tiles are wholly those of a site, or wholly unknown and not valid; gives the number of the former."""
    known = set()
    for site in sites:
        for row in np.unique(np.append(np.arange(0, site.shape[0] - 15, 16), site.shape[0] - 16)):
            for column in np.unique(np.append(np.arange(0, site.shape[1] - 15, 16), site.shape[1] - 16)):
                window = np.s_[row : row + 16, column : column + 16]
                known.add((site.dsm[window].tobytes(), site.chm[window].tobytes()))
    read = 0
    for tiles in batches:
        for tile in tiles:
            if np.isfinite(tile).any():
                assert (tile[..., 0].tobytes(), tile[..., 1].tobytes()) in known
                read += 1
    return read


@pytest.mark.parametrize("which", [0, 1], ids=["DSM", "CHM"])
@pytest.mark.parametrize("layout", [TILED, {}, {"compress": "deflate"}], ids=["tiled", "strips", "deflated"])
def test_a_file_cut_off_within_an_epoch_is_skipped_counted_and_told_never_zeros(
    tmp_path, config, caplog, which, layout
):
    config = replace(config, tile_overlap=0.0, batch_size=8, augment=False)
    dsm, chm = heights(1, LARGE)
    (folder := tmp_path / "r").mkdir()
    names = {"1_DSM.tif": dsm, "1_CHM.tif": chm}
    breaking = tuple(write(folder / name, raster, nodata=-9999.0, **layout) for name, raster in names.items())
    pairs = [write_pair(folder, 0), breaking]
    sites = [read_site(*pair) for pair in pairs]
    source = stream(pairs, config)
    epoch, tiles = source.epoch(0), []
    for number, item in enumerate(epoch):
        if number == 1:
            cut_off(pairs[1][which], 0.4)
        tiles.append(item.tiles)
        assert np.isfinite(item.tiles).any(axis=(1, 2, 3))[item.used].all()
        assert np.isnan(item.tiles[~item.used]).all()
    read = assert_true_or_unknown(tiles, sites)
    skipped = len(source.places) - read
    assert len(source.places) / 4 < skipped < len(source.places) * 0.7
    path = pairs[1][which]
    (message,) = warnings_of(caplog)
    assert message.startswith(f"{skipped} of {len(source.places)} tiles were skipped in this epoch")
    assert f"{skipped} of {path}: not a raster or cut off" in message
    assert epoch.unread.by_file() == {str(path): skipped}
    # The next epoch, of files opened anew, fares no better, and tells it too.
    list(source.epoch(1))
    assert len(warnings_of(caplog)) == 2


def test_a_training_goes_on_without_the_tiles_of_a_file_that_was_cut_off(large):
    pairs, config = large
    source = stream(pairs, config)
    state = create_state(create_model_from_config(config), config)
    trained, history = train(state, config, {"train": source}, [CutOff(pairs[1][0])])
    whole = sum(int(np.isfinite(read_site(*pair).dsm).sum()) for pair in pairs[:1])
    pixels = [metrics["n_pixels"] for metrics in history["train_metrics"]]
    assert whole < pixels[0] < 0.8 * LARGE[0] * LARGE[1]
    assert int(trained.step) == 2 * len(source)
    assert int(trained.skipped) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))


def test_the_count_of_skipped_tiles_is_right_after_a_resume(large, run_config, tmp_path, caplog):
    pairs, config = large
    config = replace(run_config, tile_overlap=0.0, batch_size=8)
    cut_off(pairs[1][1], 0.4)
    state = create_state(create_model_from_config(config), config)
    whole, _ = train(state, replace(config, name=""), {"train": stream(pairs, config)})
    expected = warnings_of(caplog)
    assert len(expected) == config.epochs
    caplog.clear()
    train(state, config, {"train": stream(pairs, config)}, [StopAfter(step=40)])
    assert warnings_of(caplog) == []
    done, _ = train(state, config, {"train": stream(pairs, config)}, resume="auto")
    assert equal(done, whole)
    counts = [message.partition(":")[0] for message in expected]
    assert [message.partition(":")[0] for message in warnings_of(caplog)] == counts


def test_in_evaluation_a_tile_counts_once_whatever_the_number_of_thresholds(large, caplog):
    pairs, config = large
    cut_off(pairs[1][0], 0.4)
    source = stream(pairs, config, shuffle=False)
    used = np.concatenate([item.used for item in source])[: source.slots]
    (message,) = warnings_of(caplog)
    assert message.startswith(f"{(~used).sum() // 2} of {len(source.places)} tiles")


def test_a_file_that_is_gone_is_skipped_too(state, pair, config, caplog):
    source = stream([pair], config)
    pair[0].unlink()
    assert not any(item.used.any() for item in source)
    with pytest.raises(ValueError, match="no pixel of the training data was valid in epoch 1"):
        train(state, config, {"train": source})
    assert f"{len(source.places)} of {len(source.places)} tiles" in caplog.text
    assert str(pair[0]) in caplog.text


def test_a_file_of_another_size_is_not_read(pair, config, caplog):
    source = stream([pair], config)
    write(pair[1], heights(0, (60, 90))[1])
    list(source)
    assert "it had (70, 90) pixels at first, and now has (60, 90)" in caplog.text


def open_files(folder):
    places = Path("/proc/self/fd").iterdir()
    return sum(str(folder) in os.path.realpath(place) for place in places)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not listed")
@pytest.mark.parametrize("to_the_end", [True, False])
def test_files_are_closed_when_an_epoch_ends_or_is_given_up(pair, config, to_the_end):
    epoch = stream([pair], config).epoch(0)
    next(epoch)
    assert open_files(pair[0].parent) >= 2
    if to_the_end:
        list(epoch)
    del epoch
    gc.collect()
    for thread in [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]:
        thread.join(10)
    assert open_files(pair[0].parent) == 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not listed")
def test_of_many_files_few_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("forestgaps_jax.data.windows._MOST_OPEN", 3)
    pairs = [open_pair(*write_pair(tmp_path / "r", n, (16, 16))) for n in range(4)]
    read = WindowReader()
    for pair in pairs:
        read(pair, 0, 0, 16)
    assert open_files(tmp_path) == 3


# What is refused


def refused(pairs, config, *words, error=ValueError):
    with pytest.raises(error) as caught:
        stream(pairs, config)
    for word in words:
        assert str(word) in str(caught.value)


def test_no_pair_and_what_is_no_pair(config):
    refused([], config, "pairs is empty")
    with pytest.raises(ValueError, match=r"must be \(DSM path, CHM path\) each"):
        inspect.unwrap(stream)(("a_DSM.tif", "a_CHM.tif"), config)  # past the type checker of the test run


def test_files_that_cannot_be_opened_are_an_error_at_once(pair, config, tmp_path):
    refused([pair, (tmp_path / "none.tif", pair[1])], config, "no such file", error=FileNotFoundError)
    pair[1].write_bytes(pair[1].read_bytes()[:100])
    refused([pair], config, pair[1], "cut off")


def test_the_same_file_twice(pair, config):
    refused([(pair[0], pair[0])], config, "the same raster was given twice")


@pytest.mark.parametrize(
    "of_chm",
    [
        {"place": Affine(1, 0, LEFT + 0.5, 0, -1, TOP)},
        {"place": Affine(1, 0, LEFT, 0, -1, TOP - 3.2)},
        {"size": 0.5},
        {"size": 1.001},
        {"crs": "EPSG:32618"},
        {"crs": None},
    ],
    ids=str,
)
def test_pairs_on_different_grids(tmp_path, config, of_chm):
    pair = write_pair(tmp_path / "r", of_chm=of_chm)
    todo = "gdalwarp -r max -t_srs EPSG:32617 -te 400000 2999930 400090 3000000 -tr 1 1 0_CHM.tif"
    refused([pair], config, *pair, "align them first", todo, "read_site")


def test_pairs_that_do_not_overlap_or_are_small(tmp_path, config):
    far = {"place": Affine(1, 0, LEFT + 500, 0, -1, TOP)}
    refused([write_pair(tmp_path / "r", of_chm=far)], config, "do not overlap")
    refused([write_pair(tmp_path / "r", 1, (12, 40))], config, "12 x 40", "make tile_size smaller")


def test_without_grain(pair, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    refused([pair], config, "pip install grain", error=ImportError)
