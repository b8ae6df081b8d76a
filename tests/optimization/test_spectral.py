import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.optimization.spectral import convolutions, normalize_kernel, spectral_norm


def kernel(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (3, 3, 1, 16), (1, 1, 32, 1), (40, 40), (3, 3, 32, 32)])
def test_it_is_the_largest_singular_value(shape):
    for seed in range(3):
        array = kernel(*shape, seed=seed)
        expected = np.linalg.norm(array.reshape(-1, shape[-1]).astype(np.float64), 2)
        assert float(spectral_norm(jnp.asarray(array))) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_it_scales_with_the_kernel(scale):
    array = kernel(3, 3, 4, 8)
    expected = np.linalg.norm(array.reshape(-1, 8).astype(np.float64), 2) * scale
    assert float(spectral_norm(jnp.asarray(array * scale, jnp.float32))) == pytest.approx(expected, rel=1e-3)


def test_its_gradient_is_the_outer_product_of_the_singular_vectors():
    array = kernel(6, 4)
    left, _, right = np.linalg.svd(array.astype(np.float64))
    got = jax.grad(lambda k: spectral_norm(k))(jnp.asarray(array))
    np.testing.assert_allclose(got, np.outer(left[:, 0], right[0]), atol=1e-4)


def test_a_kernel_of_zeros_has_norm_0():
    assert float(spectral_norm(jnp.zeros((3, 2)))) == 0


@pytest.mark.parametrize("kind", [nnx.Conv, nnx.ConvTranspose])
def test_a_normalised_layer_is_the_layer_with_its_kernel_divided(kind):
    layer, expected = (kind(3, 5, (3, 3), rngs=nnx.Rngs(1)) for _ in range(2))
    x = jnp.asarray(kernel(2, 6, 6, 3))
    weight = np.asarray(layer.kernel[...])
    expected.kernel[...] = weight / np.linalg.norm(weight.reshape(-1, 5).astype(np.float64), 2)
    normalize_kernel(layer)
    for _ in range(2):
        np.testing.assert_allclose(layer(x), expected(x), rtol=2e-3, atol=1e-5)
        normalize_kernel(layer)  # twice is once
    np.testing.assert_array_equal(layer.kernel[...], weight)  # the parameter stays


def test_a_layer_of_zeros_gives_zeros_and_learns():
    layer = nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0), kernel_init=nnx.initializers.zeros)
    normalize_kernel(layer)
    graphdef, params = nnx.split(layer)

    def loss(params):
        return nnx.merge(graphdef, params)(jnp.ones((1, 4, 4, 1))).sum()

    value, gradient = jax.value_and_grad(loss)(params)
    assert value == 0
    assert np.isfinite(gradient["kernel"][...]).all()
    assert np.abs(gradient["kernel"][...]).sum() > 0


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ValueError, match=r"spectral_norm = True: the model has no nnx\.Conv"):
        convolutions(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
