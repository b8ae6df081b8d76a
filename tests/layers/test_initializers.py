import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from forestgaps_jax.layers.initializers import _draw, he_normal


@pytest.mark.parametrize("shape", [(64, 128), (3, 3, 32, 40)])
def test_weights_are_a_cut_normal_of_the_deviation_that_he_asks(shape):
    kernel = np.asarray(he_normal(jax.random.key(0), shape))
    deviation = np.sqrt(2 / np.prod(shape[:-1]))
    assert kernel.std() == pytest.approx(deviation, rel=0.03)
    expected = stats.truncnorm(-2, 2, scale=deviation / stats.truncnorm(-2, 2).std())
    assert stats.kstest(kernel.ravel(), expected.cdf).pvalue > 0.01


def test_keys_give_weights_of_their_own_and_shapes_the_same_stream():
    one, two = (he_normal(jax.random.key(seed), (8, 8)) for seed in (0, 1))
    assert not jnp.any(one == two)
    np.testing.assert_array_equal(one, he_normal(jax.random.key(0), (8, 8)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (1, 17), (4, 4, 4, 4)])
def test_any_size_is_drawn_in_full_also_within_jit(shape):
    kernel = jax.jit(he_normal, static_argnums=1)(jax.random.key(0), shape)
    assert kernel.shape == shape
    assert np.unique(kernel).size == kernel.size
    np.testing.assert_allclose(kernel, he_normal(jax.random.key(0), shape), rtol=1e-6)


def test_a_network_of_the_same_seed_begins_alike_whatever_the_size_of_a_draw():
    # More numbers of a key begin with the fewer: so a kernel does not depend on how many were drawn.
    more, fewer = (_draw(jax.random.key(0), size) for size in (4096, 256))
    np.testing.assert_array_equal(more[:256], fewer)
