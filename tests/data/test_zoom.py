"""Zoomed tiles against SciPy's interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from forestgaps_jax.data.zoom import zoom

SIZE = 16
zoomed = jax.jit(zoom)
RNG = np.random.default_rng(0)
TILE = np.stack([RNG.uniform(300, 340, (SIZE, SIZE)), RNG.uniform(0, 30, (SIZE, SIZE))], -1).astype(
    np.float32
)
windows = st.tuples(st.floats(0.125, 1, width=32), st.floats(0, 1, width=32), st.floats(0, 1, width=32))


def grid(window):
    """Factor and first pixel of a window inside the tile, and the new centres in float64."""
    factor = np.float32(window[0])
    first = np.float32((SIZE - 1) * (1 - factor)) * np.float32(window[1:])
    rows, columns = np.minimum(first[:, None].astype(float) + factor * np.arange(SIZE), SIZE - 1)
    return jnp.asarray(first), jnp.asarray(factor), np.stack(np.meshgrid(rows, columns, indexing="ij"))


@given(windows)
@settings(max_examples=20)
def test_each_layer_is_interpolated_as_scipy_does(window):
    first, factor, centres = grid(window)
    new = zoomed(TILE, first, factor)
    for layer in range(2):
        expected = ndimage.map_coordinates(TILE[..., layer].astype(float), centres, order=1)
        np.testing.assert_allclose(new[..., layer], expected, atol=2e-3)


@given(windows, st.integers(0, 99))
@settings(max_examples=20)
def test_unknown_pixels_are_neither_filled_nor_spread_beyond_one_pixel(window, seed):
    first, factor, (rows, columns) = grid(window)
    unknown = np.random.default_rng(seed).random((SIZE, SIZE)) < 0.1
    new = np.asarray(zoomed(np.where(unknown[..., None], np.nan, TILE), first, factor))[..., 0]
    row, column = np.rint(rows).astype(int), np.rint(columns).astype(int)
    assert np.isnan(new[unknown[row, column]]).all(), "the pixel under a new one is unknown"
    near = ndimage.maximum_filter(unknown, 3)[row, column]
    assert np.isfinite(new[~near]).all()


def test_the_whole_window_is_the_tile_itself():
    np.testing.assert_array_equal(zoomed(TILE, jnp.zeros(2), jnp.float32(1.0)), TILE)


def test_a_plane_keeps_its_slope_in_metres():
    plane = np.indices((SIZE, SIZE)).astype(np.float32)[1][..., None]
    new = np.asarray(zoomed(plane, jnp.float32([2.0, 5.0]), jnp.float32(0.5)))[..., 0]
    np.testing.assert_allclose(new, np.broadcast_to(5 + 0.5 * np.arange(SIZE), (SIZE, SIZE)), rtol=1e-6)
