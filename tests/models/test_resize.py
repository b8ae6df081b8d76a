import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.models.resize import double, halve

X = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 1, 1, 1), (1, 2, 5, 2)])
def test_double_is_bilinear_resizing(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    batch, height, width, channels = shape
    expected = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")
    np.testing.assert_allclose(jax.jit(double)(x), expected, atol=1e-6)


def test_double_of_bfloat16_is_rounded_once_an_axis():
    x = jnp.asarray(X, jnp.bfloat16)
    expected = jax.image.resize(x.astype(jnp.float32), (2, 12, 16, 3), "bilinear")
    found = jax.jit(double)(x)
    assert found.dtype == jnp.bfloat16
    largest = np.abs(X).max()
    assert np.abs(np.asarray(found, np.float32) - expected).max() <= 2 * 2.0**-8 * largest


@settings(max_examples=10, deadline=None)
@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32))
def test_double_keeps_planes_inside(across, down):
    rows, columns = np.mgrid[0:6, 0:8]
    plane = (across * columns + down * rows).astype(np.float32)[None, :, :, None]
    found = jax.jit(double)(plane)[0, 1:-1, 1:-1, 0]
    expected = across * (np.arange(1, 15) - 0.5)[None, :] / 2 + down * (np.arange(1, 11) - 0.5)[:, None] / 2
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_halve_is_max_pooling():
    expected = nnx.max_pool(jnp.asarray(X), (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(halve(jnp.asarray(X)), expected)


def test_halve_of_known_pixels_is_known_where_any_was():
    known = X > 0.8
    expected = known[:, ::2, ::2] | known[:, 1::2, ::2] | known[:, ::2, 1::2] | known[:, 1::2, 1::2]
    halved = halve(jnp.asarray(known))
    assert halved.dtype == bool
    np.testing.assert_array_equal(halved, expected)
