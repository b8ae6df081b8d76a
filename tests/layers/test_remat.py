"""What the backward pass keeps, and that a CPU computes the rest again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.compilation import jit
from forestgaps_jax.layers.remat import dear, saving_memory

MATRIX, X = jnp.eye(256) * 0.9, jnp.linspace(-1.0, 1.0, 256 * 256).reshape(256, 256)


def block(matrix, x):
    return jnp.tanh(jnp.sin(dear(x @ matrix)) + 0.1 * x)


def loss(kind):
    def of(x):
        for _ in range(6):
            x = kind(block)(MATRIX, x)
        return jnp.sum(x**2)

    return of


sparing_everything = partial(saving_memory, everything=True)


def keeping(function):
    return function


def kept(kind):
    """Arrays as large as the input, beside it, that the backward pass keeps."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(loss(kind), x)[1], X))
    return sum(leaf.shape == X.shape for leaf in leaves)


def planned(kind):
    return jit(jax.grad(loss(kind))).lower(X).compile().memory_analysis().temp_size_in_bytes


def test_what_is_dear_and_the_arguments_are_kept_and_no_more():
    assert kept(sparing_everything) < kept(saving_memory) < kept(keeping)


def test_the_compiler_does_not_merge_what_is_computed_again():
    assert planned(sparing_everything) < 0.8 * planned(keeping)


@pytest.mark.parametrize("kind", [saving_memory, sparing_everything])
def test_gradients_are_the_same(kind):
    np.testing.assert_allclose(jit(jax.grad(loss(kind)))(X), jax.grad(loss(keeping))(X), rtol=1e-5, atol=1e-6)


def test_other_devices_keep_all(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert saving_memory(block) is block
    assert saving_memory(block, everything=True) is not block
