"""Effects of sensors against SciPy's filters and the statistics of what they draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from forestgaps_jax.data.sensor import add_pits, blobs, blur, correlated, grey_closing, noise

SIZE = 24
blur_of, closing_of = jax.jit(blur), jax.jit(grey_closing)
pits_of, blobs_of = jax.jit(add_pits), jax.jit(partial(blobs, SIZE))
MANY = jax.random.split(jax.random.key(0), 4000)


def surface(seed, missing=0.0):
    rng = np.random.default_rng(seed)
    dsm = (300 + rng.uniform(0, 30, (SIZE, SIZE))).astype(np.float32)
    return np.where(rng.random(dsm.shape) < missing, np.nan, dsm).astype(np.float32)


surfaces = st.builds(surface, st.integers(0, 999), st.sampled_from([0.0, 0.1, 0.6]))


@given(surfaces, st.floats(0.0625, 8.0, width=32))
@settings(max_examples=15)
def test_blur_is_scipys_gaussian_over_known_pixels(dsm, deviation):
    known = np.isfinite(dsm)

    def smooth(x):
        return ndimage.gaussian_filter(x, deviation, mode="constant", radius=SIZE)

    with np.errstate(invalid="ignore"):
        expected = smooth(np.where(known, dsm, 0.0).astype(float)) / smooth(known.astype(float))
    np.testing.assert_allclose(blur_of(dsm, jnp.float32(deviation))[known], expected[known], atol=1e-3)
    np.testing.assert_array_equal(np.isfinite(blur_of(dsm, jnp.float32(deviation))), known)


def test_no_blur_leaves_the_surface():
    dsm = surface(0, missing=0.2)
    np.testing.assert_allclose(blur_of(dsm, jnp.float32(0.0)), dsm, atol=1e-4)


@given(surfaces, st.integers(0, 5))
@settings(max_examples=15)
def test_closing_is_that_of_square_windows_cut_off_at_the_edge(dsm, reach):
    known, side = np.isfinite(dsm), 2 * reach + 1
    highest = ndimage.maximum_filter(np.where(known, dsm, -np.inf), side, mode="constant", cval=-np.inf)
    expected = ndimage.minimum_filter(highest, side, mode="constant", cval=np.inf)
    closed = np.asarray(closing_of(dsm, jnp.int32(reach)))
    np.testing.assert_array_equal(closed, np.where(known, expected, np.nan))
    assert (closed[known] >= dsm[known]).all()


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_closing_is_scipys_grey_closing_away_from_the_edge(reach):
    dsm, inside = surface(1), np.s_[2 * reach : SIZE - 2 * reach, 2 * reach : SIZE - 2 * reach]
    expected = ndimage.grey_closing(dsm, size=(2 * reach + 1,) * 2)
    np.testing.assert_array_equal(closing_of(dsm, jnp.int32(reach))[inside], expected[inside])


def test_closing_fills_narrow_gaps_and_leaves_wide_ones():
    dsm = np.full((SIZE, SIZE), 20.0, np.float32)
    dsm[:, 4:6], dsm[:, 12:20] = 0.0, 0.0  # gaps 2 and 8 pixels wide
    closed = np.asarray(closing_of(dsm, jnp.int32(1)))
    assert (closed[:, 4:6] == 20).all()
    assert (closed[:, 12:20] == 0).all()


@pytest.mark.parametrize("effect", [blur_of, closing_of])
def test_a_tile_without_known_pixels_stays_so(effect):
    nothing = np.full((SIZE, SIZE), np.nan, np.float32)
    strength = jnp.float32(2.0) if effect is blur_of else jnp.int32(2)
    assert np.isnan(effect(nothing, strength)).all()


@given(surfaces, st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=15)
def test_pits_reach_down_from_crowns_to_the_ground_at_most(dsm, seed, share):
    chm = np.random.default_rng(seed).uniform(0, 25, dsm.shape).astype(np.float32)
    chm[::5] = np.nan
    pitted = np.asarray(pits_of(dsm, chm, jnp.float32(share), jax.random.key(seed)))
    hit, crown = (pitted != dsm) & np.isfinite(dsm), (chm > 2) & np.isfinite(dsm)
    np.testing.assert_array_equal(np.isfinite(pitted), np.isfinite(dsm))
    assert not (hit & ~crown).any()
    assert (pitted[hit] <= dsm[hit]).all()
    assert (pitted[hit] >= (dsm - chm)[hit] - 1e-3).all()
    count, allowed = crown.sum(), 5 * np.sqrt(max(crown.sum() * share * (1 - share), 0.2))
    assert abs(hit.sum() - share * count) <= allowed


def test_noise_has_deviation_1_and_half_its_variance_correlated_over_10_m():
    resolution = 2.0
    drawn = np.asarray(jax.vmap(lambda key: noise(SIZE, jnp.float32(resolution), key))(MANY), float)
    # 4000 draws: the standard error of a variance is 0.022.
    assert np.abs(np.var(drawn, axis=0) - 1).max() < 0.13
    for lag in (1, 3, 6):
        correlation = np.mean(drawn[:, :, :-lag] * drawn[:, :, lag:])
        assert correlation == pytest.approx(0.5 * np.exp(-((lag * resolution / 10) ** 2) / 2), abs=0.02)


@pytest.mark.parametrize("length", [0.5, 4.0, 40.0])
def test_correlated_noise_keeps_its_deviation_up_to_the_corners(length):
    white = jax.random.normal(jax.random.key(0), (4000, SIZE, SIZE))
    drawn = np.asarray(jax.vmap(correlated, (0, None))(white, jnp.float32(length)))
    assert np.abs(np.var(drawn[:, ::23, ::23], axis=0) - 1).max() < 0.13
    assert np.abs(np.mean(drawn[:, ::23, ::23], axis=0)).max() < 0.08


@given(st.integers(0, 999), st.floats(0, 0.9375, width=32), st.sampled_from([0.5, 2.0, 16.0]))
@settings(max_examples=20)
def test_blobs_cover_the_share_and_no_more(seed, share, scale):
    covered = np.asarray(blobs_of(jnp.float32(scale), jnp.float32(share), jax.random.key(seed)))
    assert covered.mean() <= share
    assert covered.mean() >= share - 3 / covered.size


def test_blobs_hang_together():
    pieces = []
    for seed in range(20):
        covered = blobs_of(jnp.float32(3.0), jnp.float32(0.2), jax.random.key(seed))
        pieces.append(ndimage.label(covered, np.ones((3, 3)))[1])
    scattered = np.random.default_rng(0).permutation(SIZE**2).reshape(SIZE, SIZE) < 0.2 * SIZE**2
    assert np.mean(pieces) < 0.25 * ndimage.label(scattered, np.ones((3, 3)))[1]
