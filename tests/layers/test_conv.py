"""`Conv` against flax, and its spectral normalisation against NumPy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.layers.conv import Conv, Layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 8, 10, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "use_bias"),
    [(3, 1, 2, False), (6, 2, 1, False), (2, 2, 1, True)],
)
def test_convolution_is_that_of_flax(size, stride, dilation, use_bias):
    ours = Conv(3, 5, size, stride=stride, dilation=dilation, use_bias=use_bias, rngs=nnx.Rngs(0))
    flax = nnx.Conv(3, 5, (size, size), stride, kernel_dilation=dilation, use_bias=use_bias, rngs=nnx.Rngs(1))
    flax.kernel[...] = ours.kernel[...]
    if use_bias:
        ours.bias[...] = flax.bias[...] = jnp.asarray(RNG.normal(size=5), jnp.float32)
    np.testing.assert_allclose(ours(jnp.asarray(X)), flax(jnp.asarray(X)), atol=1e-5)


def test_half_precision_computes_in_it_and_keeps_float32_weights():
    conv = Conv(3, 5, 3, use_bias=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    full = Conv(3, 5, 3, use_bias=True, rngs=nnx.Rngs(0))
    got = conv(jnp.asarray(X))
    assert got.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(conv))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(np.asarray(got, np.float32), full(jnp.asarray(X)), atol=5e-2)


def normalized(steps=200):
    conv = Conv(3, 5, 3, use_bias=True, spectral_norm=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)

    def step(_, state):
        conv = nnx.merge(graph, state)
        conv(jnp.zeros((1, 4, 4, 3)), train=True)
        return nnx.state(conv)

    return nnx.merge(graph, jax.lax.fori_loop(0, steps, step, state))


def used_kernel(conv):
    """Read off what comes out for a single 1 in each input channel."""
    impulses = np.zeros((3, 5, 5, 3), np.float32)
    impulses[range(3), 2, 2, range(3)] = 1
    answer = np.asarray(conv(jnp.asarray(impulses)))[:, 1:4, 1:4]
    return answer[:, ::-1, ::-1].transpose(1, 2, 0, 3)


def test_the_largest_singular_value_of_the_used_kernel_is_1():
    conv = normalized()
    kernel = used_kernel(conv).reshape(-1, 5).astype(np.float64)
    assert np.linalg.svd(kernel, compute_uv=False)[0] == pytest.approx(1, abs=1e-4)
    parameter = np.asarray(conv.kernel[...], np.float64).reshape(-1, 5)
    expected = parameter / np.linalg.svd(parameter, compute_uv=False)[0]
    np.testing.assert_allclose(kernel, expected, atol=1e-4)


def test_the_parameter_stays_as_it_is():
    before = Conv(3, 5, 3, use_bias=True, spectral_norm=True, rngs=nnx.Rngs(0)).kernel[...]
    np.testing.assert_array_equal(normalized().kernel[...], before)


def test_only_training_follows_the_singular_value():
    conv = Conv(3, 5, 3, spectral_norm=True, rngs=nnx.Rngs(0))
    before = np.asarray(conv.direction[...])
    conv(jnp.asarray(X))
    np.testing.assert_array_equal(conv.direction[...], before)
    conv(jnp.asarray(X), train=True)
    assert np.abs(np.asarray(conv.direction[...]) - before).max() > 1e-3


def test_the_gradient_is_that_of_the_kernel_over_its_singular_value():
    conv = normalized()
    start = conv.kernel[...]
    weight = jnp.asarray(RNG.normal(size=(2, 8, 10, 5)), jnp.float32)

    def ours(kernel):
        used = normalized(0)
        used.direction[...], used.kernel[...] = conv.direction[...], kernel
        return jnp.sum(used(jnp.asarray(X)) * weight)

    def oracle(kernel):
        plain = Conv(3, 5, 3, rngs=nnx.Rngs(0))
        plain.kernel[...] = kernel / jnp.linalg.svd(kernel.reshape(-1, 5), compute_uv=False)[0]
        return jnp.sum(plain(jnp.asarray(X)) * weight)

    expected = np.asarray(jax.jit(jax.grad(oracle))(start))
    np.testing.assert_allclose(jax.jit(jax.grad(ours))(start), expected, atol=2e-3 * np.abs(expected).max())


def test_a_kernel_of_zeros_stays_finite():
    conv = Conv(3, 5, 3, spectral_norm=True, rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.zeros_like(conv.kernel[...])
    assert not np.asarray(conv(jnp.asarray(X), train=True)).any()
    assert np.isfinite(conv.direction[...]).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "float16"}, "precision = 'float16': must be 'float32' or 'bfloat16'"),
        ({"norm": "layer"}, "norm = 'layer': must be 'batch', 'group' or 'adaptive'"),
        ({"norm": "adaptive"}, "batch_size = None: must be 1 or more"),
    ],
)
def test_wrong_settings_are_errors(option, message):
    with pytest.raises(ValueError, match=message):
        Layers(nnx.Rngs(0), **option)
