"""A shuffled epoch is a permutation, and any of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from forestgaps_jax.data.order import shuffled

KEYS = jax.random.split(jax.random.key(3), 4000)


def permutations(count: int) -> np.ndarray:
    """One a row."""
    return np.asarray(jax.jit(jax.vmap(lambda key: shuffled(jnp.arange(count), count, key)))(KEYS))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 37])
def test_every_number_comes_once(count):
    np.testing.assert_array_equal(
        np.sort(permutations(count), axis=1), np.tile(np.arange(count), (len(KEYS), 1))
    )


def test_all_orders_of_four_are_equally_likely():
    _, counts = np.unique(permutations(4) @ 10 ** np.arange(4), return_counts=True)
    assert counts.size == 24
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("count", [16, 37])
def test_each_number_may_stand_anywhere_and_beside_any_other(count):
    drawn = permutations(count)
    for place in range(count):
        assert stats.chisquare(np.bincount(drawn[:, place], minlength=count)).pvalue > 1e-4 / count
    beside = np.bincount((drawn[:, 1:] - drawn[:, :-1]).ravel() % count, minlength=count)
    assert beside[0] == 0
    assert stats.chisquare(beside[1:]).pvalue > 1e-4


def test_the_largest_counts_do_not_overflow():
    count = 2**31 - 1
    slots = jnp.asarray([0, 1, 2, count // 2, count - 2, count - 1])
    drawn = np.asarray(shuffled(slots, count, KEYS[0]))
    assert np.unique(drawn).size == slots.size
    assert drawn.min() >= 0
    assert drawn.max() < count


def test_another_key_gives_another_order():
    assert np.unique(permutations(37), axis=0).shape[0] == len(KEYS)
