"""The grey opening against one written pixel by pixel, and against the canopy of real forests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.data.rasters import read_site
from forestgaps_jax.inference.baseline import opening_baseline


def windowed(raster, half, reduce):
    """``reduce`` of the known pixels of each window, clipped at the edge; NaN where there are none."""
    out = np.full(raster.shape, np.nan)
    for i, j in np.ndindex(raster.shape):
        part = raster[max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
        known = part[~np.isnan(part)]
        if known.size:
            out[i, j] = reduce(known)
    return out


def blur(length, deviation):
    """Gaussian weights from each pixel to each, cut at 4 deviations; beyond the edge lies its copy."""
    reach = int(4 * deviation + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / deviation) ** 2)
    matrix = np.zeros((length, length))
    for i in range(length):
        np.add.at(matrix[i], np.clip(i + offsets, 0, length - 1), kernel / kernel.sum())
    return matrix


def slow_baseline(dsm, half, deviation):
    surface = dsm.astype(np.float64)
    ground = windowed(windowed(surface, half, np.min), half, np.max)
    there = ~np.isnan(ground)
    down, across = blur(dsm.shape[0], deviation), blur(dsm.shape[1], deviation)
    weight = down @ there @ across.T
    with np.errstate(invalid="ignore"):
        return surface - down @ np.where(there, ground, 0) @ across.T / weight


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    half=st.integers(0, 3),
    smoothing=st.sampled_from([1e-3, 0.8, 3.0]),
    resolution=st.sampled_from([0.5, 1.0, 2.0]),
    unknown=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_opening_is_that_of_definition(seed, half, smoothing, resolution, unknown):
    rng = np.random.default_rng(seed)
    dsm = rng.uniform(800, 830, (14, 17)).astype(np.float32)
    dsm[rng.uniform(size=dsm.shape) < unknown] = np.nan
    got = opening_baseline(dsm, resolution, (2 * half + 1) * resolution, smoothing * resolution)
    np.testing.assert_allclose(got, slow_baseline(dsm, half, smoothing), atol=1e-3)


def flat_with_tree():
    dsm = np.full((70, 60), 2000.0, np.float32)
    dsm[20:30, 25:40] += 17.5
    return dsm


def test_tree_on_flat_ground_has_its_height_and_the_ground_none():
    dsm = flat_with_tree()
    np.testing.assert_allclose(opening_baseline(dsm, 1.0), dsm - 2000, atol=1e-3)


def test_unknown_stays_unknown_and_does_not_bleed():
    dsm = flat_with_tree()
    unknown = np.zeros(dsm.shape, bool)
    unknown[15:33, 38:50] = unknown[0] = unknown[60, 10] = True
    dsm[unknown] = np.nan
    height = opening_baseline(dsm, 1.0)
    np.testing.assert_array_equal(np.isnan(height), unknown)
    np.testing.assert_allclose(height[~unknown], (dsm - 2000)[~unknown], atol=1e-3)


def test_nothing_known_is_nothing_known():
    assert np.isnan(opening_baseline(np.full((50, 50), np.nan, np.float32), 1.0)).all()


@pytest.mark.parametrize(
    ("name", "least"),
    [("bcts/bcts_100", (0.91, 0.91, 0.93, 0.96)), ("osbs/osbs_100", (0.97, 0.97, 0.97, 0.97))],
)
def test_opening_finds_the_gaps_of_real_forests(shared_data, name, least):
    site = read_site(shared_data / f"{name}_DSM.tif", shared_data / f"{name}_CHM.tif")
    height = opening_baseline(site.dsm, site.grid.resolution)[site.valid]
    truth = site.chm[site.valid]
    for threshold, floor in zip((5, 10, 15, 20), least, strict=True):
        found, gap = height < threshold, truth < threshold
        assert (found & gap).sum() / (found | gap).sum() >= floor
