"""Stochastic depth, by a rate that is known or one that is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.layers.drop_path import DropPath, drop_path

X = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)


@jax.jit
def traced(branch, rate):
    return drop_path(branch, rate, streams())


def known(branch, rate):
    return drop_path(branch, rate, streams())


ways = pytest.mark.parametrize("drop", [known, traced], ids=["known", "traced"])


def streams(seed=0):
    return nnx.Rngs(drop_path=seed)


@ways
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(drop, rate):
    count = 20_000
    branch = jnp.broadcast_to(jnp.asarray([1.0, -2.0, 3.0]), (count, 2, 3))
    dropped = np.asarray(drop(branch, rate))
    kept = dropped.any(axis=(1, 2))
    np.testing.assert_allclose(dropped, np.asarray(branch) * kept[:, None, None] / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / count)


@ways
def test_rate_0_is_the_identity(drop):
    np.testing.assert_array_equal(drop(jnp.asarray(X), 0.0), X)


def test_a_rate_that_is_known_to_be_0_needs_no_rngs():
    np.testing.assert_array_equal(drop_path(jnp.asarray(X), 0.0, None), X)


@ways
def test_fault_11_rate_1_is_zero_and_so_is_its_gradient(drop):
    value, grad = jax.value_and_grad(lambda x: drop(x, 1.0).sum())(jnp.asarray(X))
    assert value == 0
    np.testing.assert_array_equal(grad, np.zeros_like(X))


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("rngs", [None, nnx.Rngs(dropout=0)], ids=["none", "other stream"])
def test_drop_path_without_its_stream_is_an_error(rate, rngs):
    with pytest.raises(ValueError, match=r"needs rngs=nnx.Rngs\(drop_path=...\)"):
        drop_path(jnp.asarray(X), rate, rngs)


def test_a_traced_rate_needs_the_stream_since_it_may_be_above_0():
    with pytest.raises(ValueError, match=r"needs rngs=nnx.Rngs\(drop_path=...\)"):
        jax.eval_shape(lambda rate: drop_path(jnp.asarray(X), rate, None), jnp.float32(0))


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_chance_is_an_error(rate):
    with pytest.raises(ValueError, match=f"drop_path_rate = {rate}: must be from 0 to 1"):
        drop_path(jnp.asarray(X), rate, streams())


def test_drop_path_is_a_function_of_its_key():
    branch = jnp.ones((64, 1))
    first, again, other = (np.asarray(drop_path(branch, 0.5, streams(seed))) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_half_precision_stays_so():
    assert drop_path(jnp.ones((4, 2), jnp.bfloat16), 0.5, streams()).dtype == jnp.bfloat16


def test_a_block_drops_by_its_share_in_training_only():
    count = 20_000
    branch = jnp.ones((count, 1))
    layer = DropPath(share=0.25)
    dropped = np.asarray(layer(branch, 0.8, streams(), train=True))
    assert abs((dropped == 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / count)
    np.testing.assert_allclose(dropped[dropped > 0], 1.25, rtol=1e-6)
    np.testing.assert_array_equal(layer(branch, 0.8), branch)
