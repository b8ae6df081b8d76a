import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.models.blocks import double, halve
from forestgaps_jax.models.drop_path import drop_path
from forestgaps_jax.models.film import FiLM, ThresholdEmbedding

X = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 1, 1, 1), (1, 2, 5, 2)])
def test_double_is_bilinear_resizing(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    batch, height, width, channels = shape
    expected = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")
    np.testing.assert_allclose(jax.jit(double)(x), expected, atol=1e-6)


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


def streams(seed=0):
    return nnx.Rngs(drop_path=seed)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(rate):
    count = 20_000
    branch = jnp.broadcast_to(jnp.asarray([1.0, -2.0, 3.0]), (count, 2, 3))
    dropped = np.asarray(drop_path(branch, rate, streams()))
    kept = dropped.any(axis=(1, 2))
    np.testing.assert_allclose(dropped, np.asarray(branch) * kept[:, None, None] / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / count)


def test_drop_path_of_rate_0_is_the_identity_and_needs_no_rngs():
    np.testing.assert_array_equal(drop_path(jnp.asarray(X), 0.0, None), X)


def test_drop_path_of_rate_1_is_zero_and_so_is_its_gradient():
    value, grad = jax.value_and_grad(lambda x: drop_path(x, 1.0, streams()).sum())(jnp.asarray(X))
    assert value == 0
    assert not np.asarray(grad).any()


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_drop_path_without_rngs_is_an_error(rate):
    with pytest.raises(ValueError, match=r"needs rngs=nnx.Rngs\(drop_path=...\)"):
        drop_path(jnp.asarray(X), rate, None)


def test_drop_path_is_a_function_of_its_key():
    branch = jnp.ones((64, 1))
    first, again, other = (np.asarray(drop_path(branch, 0.5, streams(seed))) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_film_starts_as_the_identity_and_then_is_one_plus_gamma_and_beta():
    film = FiLM(5, [3, 2], rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(2, 5)).astype(np.float32)
    for gain, shift in film(jnp.asarray(embedding)):
        np.testing.assert_array_equal(gain, 1.0)
        np.testing.assert_array_equal(shift, 0.0)
    kernel = rng.normal(size=(5, 10)).astype(np.float32)
    film.project.kernel[...] = jnp.asarray(kernel)
    gamma, beta = (embedding @ part for part in np.split(kernel, 2, axis=1))
    for (gain, shift), layer in zip(film(jnp.asarray(embedding)), (np.s_[:, :3], np.s_[:, 3:]), strict=True):
        assert gain.shape == (2, 1, 1, gamma[layer].shape[1])
        np.testing.assert_allclose(gain[:, 0, 0], 1 + gamma[layer], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shift[:, 0, 0], beta[layer], rtol=1e-5, atol=1e-6)


def test_embedding_tells_thresholds_apart_sample_by_sample():
    embed = ThresholdEmbedding(8, rngs=nnx.Rngs(0))
    both = np.asarray(embed(jnp.asarray([0.5, 2.0])))
    assert both.shape == (2, 8)
    assert np.abs(both[0] - both[1]).max() > 1e-2
    np.testing.assert_allclose(embed(jnp.asarray([2.0]))[0], both[1], rtol=1e-5)
