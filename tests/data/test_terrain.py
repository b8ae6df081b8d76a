"""Ground to put under tiles, against planes, spectra and slopes measured in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.data.terrain import WAVELENGTHS, fractal_relief, pixel_centres, ridge, tilted_plane

SIZE = 33
plane_of = jax.jit(partial(tilted_plane, SIZE))
relief_of = jax.jit(partial(fractal_relief, SIZE))
ridge_of = jax.jit(partial(ridge, SIZE))
wide_relief = jax.jit(jax.vmap(partial(fractal_relief, 512), (None, 0)))
resolutions = st.floats(0.25, 5.0, width=32)
keys = st.integers(0, 2**31 - 1).map(jax.random.key)


def gradients(ground, resolution):
    return np.gradient(np.asarray(ground, float), resolution)


def test_pixel_centres_are_metres_from_the_middle():
    np.testing.assert_allclose(pixel_centres(4, jnp.float32(2.0)), [-3, -1, 1, 3])


@given(st.floats(0, 60, width=32), st.floats(0, 6, width=32), resolutions)
@settings(max_examples=20)
def test_a_plane_has_the_slope_and_direction_asked_for(slope, direction, resolution):
    ground = np.float64(plane_of(*map(jnp.float32, (resolution, slope, direction))))
    y, x = np.indices(ground.shape) * resolution
    columns = np.stack([y.ravel(), x.ravel(), np.ones(y.size)], axis=-1)
    (down, right, middle), *_ = np.linalg.lstsq(columns, ground.ravel())
    np.testing.assert_allclose(columns @ [down, right, middle], ground.ravel(), atol=1e-4)
    np.testing.assert_allclose(np.degrees(np.arctan(np.hypot(down, right))), slope, atol=1e-3)
    np.testing.assert_allclose(
        [down, right], np.tan(np.radians(slope)) * np.array([np.sin(direction), np.cos(direction)]), atol=1e-4
    )
    assert abs(ground[SIZE // 2, SIZE // 2]) < 1e-4


@given(resolutions, keys)
@settings(max_examples=10)
def test_ground_is_the_same_at_another_pixel_size(resolution, key):
    fine = jnp.float32(resolution / 2)
    relief = fractal_relief(2 * SIZE - 1, fine, key)[::2, ::2]
    np.testing.assert_allclose(relief_of(2 * fine, key), relief, atol=1e-3)
    fold = ridge(2 * SIZE - 1, fine, jnp.float32(12.0), key)[::2, ::2]
    np.testing.assert_allclose(ridge_of(2 * fine, jnp.float32(12.0), key), fold, atol=1e-2)


def test_relief_has_the_stated_deviation_and_slope():
    keys = jax.random.split(jax.random.key(0), 8)
    np.testing.assert_allclose(np.std(wide_relief(jnp.float32(8.0), keys), axis=(1, 2)), 1.0, rtol=0.05)
    slopes = [np.hypot(*gradients(ground, 2.0)) for ground in wide_relief(jnp.float32(2.0), keys)]
    assert np.sqrt(np.mean(np.square(slopes))) == pytest.approx(0.05, rel=0.1)


def test_relief_has_a_power_law_spectrum_and_no_short_waves():
    resolution = 2.0
    grounds = np.float64(wide_relief(jnp.float32(resolution), jax.random.split(jax.random.key(1), 16)))
    taper = np.outer(*[np.hanning(512)] * 2)
    power = np.mean(np.abs(np.fft.fft2(grounds * taper)) ** 2, axis=0)
    wavenumber = np.hypot(*np.meshgrid(*[np.fft.fftfreq(512, resolution)] * 2))
    shortest, longest = WAVELENGTHS
    short, lawful = wavenumber > 1.1 / shortest, (wavenumber > 2 / longest) & (wavenumber < 0.8 / shortest)
    assert power[short].sum() < 1e-5 * power.sum()
    edges = np.geomspace(2 / longest, 0.8 / shortest, 9)
    ring = np.digitize(wavenumber, edges)
    means = [np.log(power[lawful & (ring == i)].mean()) for i in range(1, 9)]
    exponent = np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), means, 1)[0]
    assert exponent == pytest.approx(-3.6, abs=0.4)


@given(st.floats(1, 40, width=32), resolutions, keys)
@settings(max_examples=20)
def test_a_ridge_is_as_high_as_asked_round_and_not_steep(height, resolution, key):
    ground = np.float64(ridge_of(jnp.float32(resolution), jnp.float32(height), key))
    assert (ground > 0).all()
    assert ground.max() <= height * (1 + 1e-6)
    # Its line passes through the tile, at most half a pixel's diagonal from a pixel's centre.
    off = np.hypot(0.71 * resolution, 5.0) - 5.0
    assert ground.max() >= height * np.exp(-off / max(height, 10.0)) - 1e-3
    assert np.hypot(*gradients(ground, resolution)).max() < 1
    bend = np.abs(np.diff(ground, n=2, axis=0)).max() / resolution**2
    assert bend < 1 / 5.0 + 1e-4 * height / resolution**2


def test_a_negative_height_is_a_valley():
    key, resolution = jax.random.key(4), jnp.float32(1.0)
    hill, valley = (ridge_of(resolution, jnp.float32(height), key) for height in (9.0, -9.0))
    np.testing.assert_array_equal(hill, -np.asarray(valley))
