"""What a virtual forest must be, measured from its rasters alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from forestgaps_jax.data.ground import shared_grounds
from forestgaps_jax.data.synthetic import is_virtual, put_on_terrain, virtual_forest
from forestgaps_jax.types import Grid, Site

THRESHOLDS = (5.0, 10.0, 15.0, 20.0)
UNDERSTOREY = 4.2  # m, its 4 m and four deviations of the sensor noise


@pytest.fixture(scope="module")
def site():
    return virtual_forest(0)


def slope_degrees(surface, resolution):
    return np.degrees(np.arctan(np.hypot(*np.gradient(surface.astype(np.float64), resolution))))


def block_mean(raster, size):
    rows, cols = raster.shape
    return raster.reshape(rows // size, size, cols // size, size).mean((1, 3))


def test_same_seed_gives_the_same_bits():
    first, second = (virtual_forest(7, (96, 80), slope=20.0) for _ in range(2))
    assert first.dsm.tobytes() == second.dsm.tobytes()
    assert first.chm.tobytes() == second.chm.tobytes()


def test_another_seed_gives_another_forest():
    first, second = (virtual_forest(seed, (128, 128)) for seed in (1, 2))
    assert abs(np.corrcoef(first.chm.ravel(), second.chm.ravel())[0, 1]) < 0.2


def test_site_is_whole_and_lies_nowhere(site):
    assert site.shape == site.chm.shape == (512, 512)
    assert site.dsm.dtype == site.chm.dtype == np.float32
    assert site.valid.all()
    assert site.chm.min() >= 0.0
    assert (site.grid.resolution, site.grid.crs) == (1.0, None)
    assert max(abs(site.grid.left), abs(site.grid.top)) > 4.1e7  # m, more than once around the Earth
    assert site.name == "virtual-0"
    assert virtual_forest(0, (16, 16), name="hill").name == "hill"


def test_terrain_carries_no_trace_of_the_canopy(site):
    terrain = site.dsm.astype(np.float64) - site.chm
    step = np.hypot(*np.gradient(site.chm))
    bend = np.abs(ndimage.laplace(terrain))[2:-2, 2:-2]
    assert bend.max() < 0.6  # m; crown edges step by 5 m and more
    assert np.median(np.abs(ndimage.laplace(site.chm))[step > 5.0]) > 5.0
    assert abs(np.corrcoef(bend.ravel(), step[2:-2, 2:-2].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("slope", [5.0, 15.0, 30.0, 45.0])
@pytest.mark.parametrize(("shape", "resolution"), [((256, 256), 1.0), ((100, 60), 2.0), ((128, 128), 0.5)])
def test_mean_slope_is_as_asked(slope, shape, resolution):
    site = virtual_forest(3, shape, resolution, slope=slope)
    assert slope_degrees(site.dsm - site.chm, resolution).mean() == pytest.approx(slope, rel=0.1)


def test_slope_zero_is_a_plain():
    site = virtual_forest(3, (64, 64), slope=0.0)
    assert np.ptp(site.dsm - site.chm) < 1e-3


def test_terrain_does_not_reshuffle_the_trees():
    flat, steep = (virtual_forest(4, (96, 96), slope=slope) for slope in (0.0, 40.0))
    np.testing.assert_array_equal(flat.chm, steep.chm)


@pytest.mark.parametrize("closure", [0.0, 0.3, 0.7, 0.95])
def test_closure_is_as_asked(closure):
    site = virtual_forest(5, (256, 256), closure=closure)
    assert (site.chm > UNDERSTOREY).mean() == pytest.approx(closure, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_every_threshold_has_gaps_and_canopy(seed):
    chm = virtual_forest(seed).chm
    fractions = [(chm < threshold).mean() for threshold in THRESHOLDS]
    assert 0.1 < fractions[0] < fractions[1] < fractions[2] < fractions[3] < 0.85


@pytest.mark.parametrize("height", [10.0, 25.0, 60.0])
def test_high_canopy_is_as_high_as_asked(height):
    chm = virtual_forest(6, (384, 384), height=height).chm
    assert np.quantile(chm, 0.95) == pytest.approx(height, rel=0.2)
    assert chm.max() < 1.6 * height


def test_pixel_size_does_not_change_the_forest():
    metre, half = virtual_forest(8, (256, 192), 1.0), virtual_forest(8, (512, 384), 0.5)
    terrains = metre.dsm - metre.chm, block_mean(half.dsm - half.chm, 2)
    assert np.abs(terrains[0] - terrains[1]).max() < 0.1
    assert np.corrcoef(metre.chm.ravel(), block_mean(half.chm, 2).ravel())[0, 1] > 0.95
    for threshold in THRESHOLDS:
        assert (metre.chm < threshold).mean() == pytest.approx((half.chm < threshold).mean(), abs=0.02)


def test_tree_tops_are_as_many_as_in_a_forest(site):
    smooth = ndimage.gaussian_filter(site.chm, 0.7)
    tops = (smooth == ndimage.maximum_filter(smooth, size=5)) & (smooth > 5.0)
    assert 100 < tops.sum() / (site.chm.size / 1e4) < 600


def test_gap_areas_follow_a_power_law():
    labels = np.zeros((3, 512, 512), np.int32)
    for seed, label in enumerate(labels):
        ndimage.label(virtual_forest(seed).chm < 5.0, np.ones((3, 3)), output=label)
    areas = np.concatenate([np.bincount(label.ravel())[1:] for label in labels])
    areas = areas[areas >= 10]
    exponent = 1.0 + areas.size / np.log(areas / 9.5).sum()  # maximum likelihood, Clauset et al. 2009
    assert 1.3 < exponent < 2.3
    assert areas.max() > 1000


def test_noise_is_the_same_in_surface_and_canopy():
    quiet, loud = (virtual_forest(9, (64, 64), noise=noise) for noise in (0.0, 0.5))
    np.testing.assert_allclose(loud.dsm - loud.chm, quiet.dsm - quiet.chm, atol=1e-3)
    tall = quiet.chm > 5.0
    assert np.std((loud.chm - quiet.chm)[tall]) == pytest.approx(0.5, rel=0.1)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    shape=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    resolution=st.floats(0.3, 5.0),
    slope=st.floats(0.0, 60.0),
    closure=st.floats(0.0, 1.0),
    height=st.floats(8.0, 90.0),
)
def test_whatever_is_allowed_gives_a_whole_site(seed, shape, resolution, **options):
    site = virtual_forest(seed, shape, resolution, **options)
    assert site.shape == shape
    assert site.valid.all()
    assert 0.0 <= site.chm.min() <= site.chm.max() < 2.0 * options["height"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("shape", (8, 64)),
        ("resolution", 0.0),
        ("resolution", 20.0),
        ("slope", -1.0),
        ("slope", 80.0),
        ("closure", 1.1),
        ("closure", float("nan")),
        ("height", 2.0),
        ("noise", -0.1),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    wrong: dict[str, Any] = {"seed": 0, "shape": (32, 32), field: value}
    with pytest.raises(ValueError, match=rf"{field} is .*; allowed: "):
        virtual_forest(**wrong)


# Where a forest lies


@given(st.lists(st.integers(0, 30) | st.integers(990, 1010) | st.integers(0, 10**7), unique=True, max_size=6))
@settings(max_examples=10)
def test_no_two_seeds_show_the_same_ground(seeds):
    forests = [virtual_forest(seed, (16, 16), 5.0) for seed in seeds]
    assert shared_grounds(forests) == [(number,) for number in range(len(seeds))]


def test_a_seed_lies_at_one_place_in_every_pixel_size():
    coarse, fine = virtual_forest(7, (16, 16), 2.0), virtual_forest(7, (16, 16), 0.5)
    assert shared_grounds([coarse, fine]) == [(0, 1)]


def test_a_raster_is_no_virtual_forest_wherever_it_lies(site):
    assert is_virtual(site)
    for grid in (Grid(1.0), Grid(1.0, 800_000.0, 9_999_999.0), Grid(1.0, 5e5, 5e6, "EPSG:32617")):
        raster = Site("raster", site.dsm, site.chm, grid)
        assert not is_virtual(raster)
        assert shared_grounds([raster, site]) == [(0,), (1,)]


# The canopy of a raster on virtual terrain


@pytest.mark.parametrize("slope", [0.0, 10.0, 35.0])
@pytest.mark.parametrize(("shape", "resolution"), [((200, 160), 1.0), ((96, 300), 0.5)])
def test_a_canopy_is_put_on_smooth_terrain_of_the_slope_asked_for(slope, shape, resolution):
    rng = np.random.default_rng(0)
    chm = rng.uniform(0, 30, shape).astype(np.float32)  # as rough as can be
    chm[5:9, 20:40] = np.nan
    flat = Site("plot", chm, chm, Grid(resolution, 5e5, 5e6, "EPSG:32617"))
    steep = put_on_terrain(flat, seed=4, slope=slope)
    assert steep.chm.tobytes() == chm.tobytes()
    np.testing.assert_array_equal(np.isnan(steep.dsm), np.isnan(chm))
    assert (steep.name, steep.grid, steep.dsm.dtype) == ("plot", flat.grid, np.float32)
    terrain = steep.dsm.astype(np.float64) - chm
    inclination = slope_degrees(terrain, resolution)
    assert np.nanmean(inclination) == pytest.approx(slope, rel=0.1, abs=0.05)
    bend = np.abs(ndimage.laplace(terrain))[2:-2, 2:-2]
    assert np.nanmax(bend) < 0.6  # m; the canopy steps by up to 30 m
    # What stands on the terrain has no part in it.
    other = put_on_terrain(Site("bare", chm * 0, chm * 0, flat.grid), seed=4, slope=slope)
    np.testing.assert_allclose(terrain, other.dsm, atol=1e-3)


def test_terrains_are_a_function_of_the_seed(site):
    first, again, other = (put_on_terrain(site, seed, 20.0).dsm - site.chm for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1.0


@pytest.mark.parametrize(
    ("field", "value"), [("seed", -1), ("slope", 61.0), ("shape", (8, 64)), ("resolution", 10.0)]
)
def test_terrains_that_cannot_be_made_are_refused_by_name(field, value):
    wrong: dict[str, Any] = {"seed": 0, "slope": 10.0, "shape": (32, 32), "resolution": 1.0, field: value}
    chm = np.zeros(wrong.pop("shape"), np.float32)
    site = Site("plot", chm, chm, Grid(wrong.pop("resolution")))
    with pytest.raises(ValueError, match=rf"{field} is .*; allowed: "):
        put_on_terrain(site, **wrong)
