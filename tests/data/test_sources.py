import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from forestgaps_jax.config import Config
from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.sources import create_data, evaluation_sampler, load_sites, training_sampler
from forestgaps_jax.data.tiles import split_blocks
from forestgaps_jax.types import Grid, Sampler, Site

RNG = np.random.default_rng(0)


def make_site(name="made", shape=(64, 64)):
    dsm = RNG.uniform(300, 330, shape).astype(np.float32)
    return Site(name, dsm, RNG.uniform(0, 30, shape).astype(np.float32), Grid(1.0))


@pytest.fixture(scope="module")
def forests():
    return load_sites(Config(virtual_sites=3, virtual_size=96, virtual_slope=(0.0, 30.0), seed=2))


def mean_slope(surface):
    return np.degrees(np.arctan(np.hypot(*np.gradient(surface.astype(float))))).mean()


def test_virtual_forests_are_as_configured(forests):
    assert [site.shape for site in forests] == [(96, 96)] * 3
    assert {site.grid.resolution for site in forests} == {1.0}
    slopes = [mean_slope(site.dsm - site.chm) for site in forests]
    assert slopes[0] < slopes[1] < slopes[2]


def test_virtual_forests_of_a_seed_differ_from_each_other_and_from_those_of_the_next(forests):
    config = Config(virtual_sites=2, virtual_size=96, virtual_slope=(0.0, 30.0), seed=3)
    canopies = [site.chm.tobytes() for site in (*forests, *load_sites(config))]
    assert len(set(canopies)) == 5


def test_raster_pairs_are_read_in_order(tmp_path):
    paths, heights = {"dsm": [], "chm": []}, []
    for number in range(2):
        chm = RNG.uniform(0, 30, (8, 8)).astype(np.float32)
        for kind, array in (("dsm", chm + 300), ("chm", chm)):
            path = tmp_path / f"{number}_{kind.upper()}.tif"
            place = {"crs": "EPSG:32617", "transform": Affine(1, 0, 4e5 + 100 * number, 0, -1, 3e6)}
            with rasterio.open(
                path, "w", driver="GTiff", dtype="float32", count=1, height=8, width=8, **place
            ) as out:
                out.write(array, 1)
            paths[kind].append(str(path))
        heights.append(chm)
    sites = load_sites(Config(dsm=tuple(paths["dsm"]), chm=tuple(paths["chm"])))
    assert [site.name for site in sites] == ["0", "1"]
    for site, chm in zip(sites, heights, strict=True):
        np.testing.assert_array_equal(site.chm, chm)


def test_samplers_hold_the_split_and_only_training_is_random():
    sites = [make_site()]
    config = Config(tile_size=8, batch_size=2, threshold_range=(2.0, 20.0), split_buffer=2, seed=4)
    data, split = create_data(sites, config), split_blocks(sites, config)
    for part in ("train", "val", "test"):
        sampler = getattr(data, part)
        assert isinstance(sampler, Sampler)
        np.testing.assert_array_equal(sampler.places, getattr(split, part))
        assert (sampler.tile_size, sampler.batch_size, sampler.thresholds) == (8, 2, config.thresholds)
        assert sampler.shuffle == (part == "train")
        assert sampler.augmentation == (Augmentation(turns=True) if part == "train" else None)
        assert sampler.threshold_range == ((2.0, 20.0) if part == "train" else None)


def test_augmentation_can_be_left_off():
    assert create_data([make_site()], Config(tile_size=8, augment=False)).train.augmentation is None


def test_parts_of_fraction_0_are_none():
    data = create_data([make_site()], Config(tile_size=8, val_fraction=0, test_fraction=0))
    assert data.val is None
    assert data.test is None


def test_evaluation_sampler_reads_whole_sites_tile_by_tile():
    sites = [make_site("a", (16, 17)), make_site("b", (8, 24))]
    sampler = evaluation_sampler(sites, Config(tile_size=8, batch_size=7, thresholds=(7.0, 12.0)))
    places = [(0, row, column) for row in (0, 8) for column in (0, 8)] + [(1, 0, c) for c in (0, 8, 16)]
    batch = jax.jit(lambda s: s.sample(jnp.int32(1)))(sampler)
    assert sampler.steps_per_epoch == 2
    for tile, mask, (site, row, column) in zip(batch.dsm, batch.mask, places, strict=True):
        window = np.s_[row : row + 8, column : column + 8]
        np.testing.assert_array_equal(tile[..., 0], sites[site].dsm[window])
        np.testing.assert_array_equal(mask[..., 0], sites[site].chm[window] < 12.0)


def test_training_sampler_overlaps_tiles_and_reaches_the_edges():
    sampler = training_sampler([make_site("a", (16, 20))], Config(tile_size=8, tile_overlap=0.5))
    assert sampler.shuffle
    expected = {(0, row, column) for row in (0, 4, 8) for column in (0, 4, 8, 12)}
    assert {tuple(map(int, place)) for place in sampler.places} == expected
