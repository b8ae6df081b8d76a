"""What is computed from a tile before the network: its plane, its grey openings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from forestgaps_jax.models.surface import opening, remove_plane, surface_channels

SHAPE = (3, 11, 8, 1)
WINDOWS = (3, 5, 9, 33)
flatten = jax.jit(remove_plane)
opened = jax.jit(opening, static_argnums=2)
heights_in_64ths = hnp.arrays(np.int32, SHAPE, elements=st.integers(-640, 640)).map(
    lambda whole: (whole / 64).astype(np.float32)
)
known_pixels = hnp.arrays(bool, SHAPE)


def scipy_opening(heights, known, window):
    """Minimum, then maximum filter of SciPy, where what is outside or unknown is in no window."""
    size = (1, window, window, 1)
    lowest = ndimage.minimum_filter(np.where(known, heights, np.inf), size, mode="constant", cval=np.inf)
    lowest[np.isinf(lowest)] = -np.inf
    return ndimage.maximum_filter(lowest, size, mode="constant", cval=-np.inf)


def rough(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


# Grey opening


@pytest.mark.parametrize("window", WINDOWS)
@given(heights_in_64ths, known_pixels)
def test_opening_is_scipys_with_windows_cut_off_at_edges_and_unknown_pixels(window, heights, known):
    """The widest window is four times the tile."""
    found = np.asarray(opened(jnp.asarray(heights), jnp.asarray(known), window))
    np.testing.assert_array_equal(found[known], scipy_opening(heights, known, window)[known])
    assert np.isfinite(found[known]).all()


@given(heights_in_64ths, known_pixels)
def test_opening_only_lowers_and_again_changes_nothing(heights, known):
    once = opened(jnp.asarray(heights), jnp.asarray(known), 5)
    again = opened(jnp.where(known, once, 0.0), jnp.asarray(known), 5)
    assert (np.asarray(once) <= heights)[known].all()
    np.testing.assert_array_equal(np.asarray(again)[known], np.asarray(once)[known])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 6, 1), (1, 2, 2, 1)])
def test_a_tile_smaller_than_the_window_opens_to_its_lowest_height(shape):
    heights, known = rough(shape), np.ones(shape, bool)
    lowest = np.broadcast_to(heights.min(axis=(1, 2), keepdims=True), shape)
    np.testing.assert_array_equal(opening(jnp.asarray(heights), jnp.asarray(known), 65), lowest)


def test_opening_keeps_a_plain_and_takes_off_what_is_narrower_than_the_window():
    heights = np.zeros((1, 20, 20, 1), np.float32)
    heights[0, 3:6, 3:6], heights[0, 10:17, 10:17] = 20.0, 30.0
    found = opening(jnp.asarray(heights), jnp.ones(heights.shape, bool), 5)
    expected = heights.copy()
    expected[0, 3:6, 3:6] = 0.0
    np.testing.assert_array_equal(found, expected)


# Plane


def lstsq_residual(heights, known):
    """Heights above the plane that NumPy's least squares gives, float64; 0 where not known."""
    out = np.zeros(heights.shape)
    for tile, there, rest in zip(heights[..., 0], known[..., 0], out[..., 0], strict=True):
        rows, columns = np.nonzero(there)
        design = np.stack([rows, columns, np.ones(len(rows))], axis=1).astype(np.float64)
        values = tile[there].astype(np.float64)
        rest[there] = values - design @ np.linalg.lstsq(design, values)[0]
    return out


@pytest.mark.parametrize("share", [1.0, 0.5, 0.15])
@pytest.mark.parametrize("slope", [0.0, 1.0, 20.0])
def test_heights_are_those_above_the_plane_of_least_squares(share, slope):
    rng = np.random.default_rng(1)
    heights = rough() + slope * (np.arange(8) - 0.3 * np.arange(11)[:, None])[..., None].astype(np.float32)
    known = rng.uniform(size=SHAPE) < share
    found = flatten(jnp.where(known, heights, 0.0), known)
    np.testing.assert_allclose(found, lstsq_residual(heights, known), atol=2e-5 * (1 + slope))


def only(*pixels):
    known = np.zeros(SHAPE, bool)
    for row, column in pixels:
        known[:, row, column] = True
    return known


@pytest.mark.parametrize(
    "known",
    [
        only(),
        only((4, 5)),
        only((0, 0), (7, 3)),
        only(*((6, column) for column in range(8))),
        only(*((row, 0) for row in range(11))),
        only(*((k, k) for k in range(8))),
        only(*((10 - k, k) for k in range(8))),
    ],
    ids=["none", "one pixel", "two pixels", "one row", "one column", "diagonal", "other diagonal"],
)
def test_what_fixes_no_plane_loses_its_mean(known):
    heights = 1e3 * rough()
    mean = heights.mean(axis=(1, 2), keepdims=True, where=known) if known.any() else 0.0
    found = np.asarray(flatten(jnp.where(known, heights, 0.0), known))
    np.testing.assert_allclose(found, np.where(known, heights - mean, 0.0), atol=1e-2)


@given(known_pixels)
def test_whatever_is_known_no_tile_becomes_infinite_or_larger(known):
    heights = np.where(known, rough(), np.float32(0))
    found = np.asarray(flatten(heights, known))
    assert np.isfinite(found).all()
    assert not found[~known].any()
    residual = np.sqrt(np.sum(found.astype(float) ** 2, axis=(1, 2)))
    assert (residual <= np.sqrt(np.sum(heights.astype(float) ** 2, axis=(1, 2))) * 1.001 + 1e-6).all()


# Both


@pytest.mark.parametrize("detrend", [False, True])
def test_channels_are_the_surface_and_its_heights_above_each_opening(detrend):
    known = np.random.default_rng(2).uniform(size=SHAPE) < 0.7
    heights = np.where(known, rough(), np.float32(0))
    found = np.asarray(surface_channels(jnp.asarray(heights), jnp.asarray(known), detrend, WINDOWS))
    surface = lstsq_residual(heights, known) if detrend else heights
    above = [np.where(known, surface - scipy_opening(surface, known, window), 0.0) for window in WINDOWS]
    np.testing.assert_allclose(found, np.concatenate([surface, *above], axis=-1), atol=1e-5)
    assert not found[np.broadcast_to(~known, found.shape)].any()


def test_without_windows_there_is_the_surface_alone():
    heights, known = jnp.asarray(rough()), jnp.ones(SHAPE, bool)
    np.testing.assert_array_equal(surface_channels(heights, known, False, ()), heights)


def test_gradients_are_finite_where_nothing_or_no_plane_is_known_and_on_ties():
    weight = rough((*SHAPE[:3], 1 + len(WINDOWS)), seed=3)

    @jax.jit
    @jax.grad
    def gradient(heights, known):
        return jnp.sum(weight * surface_channels(heights, known, True, WINDOWS))

    for known in (only(), only((0, 0), (7, 3)), np.ones(SHAPE, bool)):
        for heights in (np.where(known, rough(), np.float32(0)), np.zeros(SHAPE, np.float32)):
            assert np.isfinite(gradient(heights, known)).all()
