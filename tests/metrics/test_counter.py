import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.metrics import ExactCounter
from forestgaps_jax.metrics.counter import check_countable

NUMBERS = st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3)

add = jax.jit(ExactCounter.add)
merge = jax.jit(ExactCounter.merge)


@settings(max_examples=25, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=6))
def test_counts_add_up_as_exact_integers_do(updates):
    counter = ExactCounter.zeros(3)
    for amounts in updates:
        counter = add(counter, jnp.asarray(amounts, jnp.uint32))
    exact = [sum(column) for column in zip(*updates, strict=True)]
    assert counter.to_numpy().tolist() == exact
    assert merge(counter, counter).to_numpy().tolist() == [2 * n for n in exact]


def test_doubling_passes_two_to_the_60():
    counter = add(ExactCounter.zeros(1), jnp.asarray([2**32 - 1], jnp.uint32))
    for _ in range(29):
        counter = merge(counter, counter)
    assert counter.to_numpy().tolist() == [(2**32 - 1) * 2**29]


def test_counter_survives_the_way_to_the_host():
    counter = add(ExactCounter.zeros(2, 2), jnp.asarray([[1, 2], [3, 2**32 - 1]], jnp.uint32))
    fetched = jax.device_get(merge(counter, counter))
    assert isinstance(fetched.low, np.ndarray)
    assert fetched.to_numpy().tolist() == [[2, 4], [6, 2**33 - 2]]


def test_only_equal_shapes_are_countable():
    image = jnp.zeros((2, 4, 4, 1))
    check_countable("logits", image, targets=image, valid=None)
    with pytest.raises(ValueError, match=r"valid have shape \(2, 4, 4\), logits \(2, 4, 4, 1\)"):
        check_countable("logits", image, targets=image, valid=image[..., 0])
