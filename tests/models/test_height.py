import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.models.height import normalize_height

normalize = jax.jit(normalize_height)
RNG = np.random.default_rng(0)
THRESHOLD = np.array([5.0, 20.0], np.float32)


def heights(known_share=1.0):
    """Steps of 1/64 m, so that sums with whole metres are exact in float32."""
    dsm = (RNG.integers(0, 64 * 60, (2, 8, 8, 1)) / 64).astype(np.float32)
    return np.where(RNG.uniform(size=dsm.shape) < known_share, dsm, np.float32(np.nan))


@pytest.mark.parametrize("elevation", [-400.0, 300.0, 4000.0])
@pytest.mark.parametrize("known_share", [1.0, 0.4])
def test_elevation_of_the_site_is_not_seen(elevation, known_share):
    dsm = heights(known_share)
    low, high = (normalize(tile, THRESHOLD)[0] for tile in (dsm, dsm + np.float32(elevation)))
    np.testing.assert_array_equal(low, high)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.floats(0.02, 1.0))
def test_heights_are_those_above_the_mean_of_the_known(seed, known_share):
    rng = np.random.default_rng(seed)
    dsm = rng.normal(2500, 30, (2, 8, 8, 1)).astype(np.float32)
    dsm[rng.uniform(size=dsm.shape) > known_share] = np.nan
    tile, threshold, known = map(np.asarray, normalize(dsm, THRESHOLD))
    np.testing.assert_array_equal(known, ~np.isnan(dsm))
    np.testing.assert_allclose(threshold, THRESHOLD / 10)
    for got, given_, there in zip(tile, dsm.astype(np.float64), known, strict=True):
        values = given_[there]
        np.testing.assert_allclose(
            got[there], (values - values.mean()) / 10 if len(values) else [], atol=1e-5
        )
        assert not got[~there].any()


@pytest.mark.parametrize("unknown", [np.nan, np.inf, -np.inf])
def test_a_tile_without_a_known_pixel_is_all_zero(unknown):
    dsm = heights()
    dsm[1] = unknown
    tile, _, known = normalize(dsm, THRESHOLD)
    assert not np.asarray(tile[1]).any()
    assert not np.asarray(known[1]).any()
    np.testing.assert_array_equal(tile[0], normalize(dsm[[0, 0]], THRESHOLD)[0][0])


def test_scale_is_the_unit_of_heights_and_thresholds_alike():
    dsm = jnp.asarray(heights())
    (fine, t_fine, _), (coarse, t_coarse, _) = (
        normalize_height(dsm, jnp.asarray(THRESHOLD), scale) for scale in (1.0, 20.0)
    )
    np.testing.assert_allclose(fine, 20 * np.asarray(coarse), rtol=1e-6)
    np.testing.assert_allclose(t_fine, 20 * np.asarray(t_coarse), rtol=1e-6)
