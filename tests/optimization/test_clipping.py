import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.optimization import GradientClipping


def gradients(norm):
    """A tree of this global norm, with its largest entry 0.8 of that."""
    return {
        "kernel": jnp.array([[0.8 * norm, 0.0]], jnp.float32),
        "bias": jnp.array([-0.6 * norm], jnp.float32),
    }


@jax.jit
def norm_of(tree):
    return optax.tree.norm(tree)


def seen(clipping, norms, optimizer=None):
    """The optimizer's state after gradients of these norms."""
    optimizer = optax.chain(clipping.transform(), optax.adam(0.1)) if optimizer is None else optimizer
    update = jax.jit(optimizer.update)
    params = gradients(1.0)
    state = optimizer.init(params)
    for norm in norms:
        _, state = update(gradients(norm), state, params)
    return state


@settings(max_examples=20, deadline=None)
@given(norm=st.floats(0.01, 1e4), limit=st.sampled_from([0.5, 3.0]))
def test_it_clips_by_global_norm_and_keeps_the_direction(norm, limit):
    clipped = GradientClipping(limit)(gradients(norm))
    assert float(norm_of(clipped)) == pytest.approx(min(norm, limit), rel=1e-5)
    factor = min(1.0, limit / norm)
    for name, entry in gradients(norm).items():
        np.testing.assert_allclose(clipped[name], entry * factor, rtol=1e-5)


def test_it_clips_by_value():
    clipped = GradientClipping(0.5, clip_norm=False)(gradients(1.0))
    np.testing.assert_allclose(clipped["kernel"], [[0.5, 0.0]])
    np.testing.assert_allclose(clipped["bias"], [-0.5])


@pytest.mark.parametrize("monitor", [True, False])
@pytest.mark.parametrize("clip_norm", [True, False])
def test_monitoring_changes_no_gradient(monitor, clip_norm):
    clipping = GradientClipping(0.5, clip_norm, monitor)
    transform = clipping.transform()
    updates, _ = transform.update(gradients(3.0), transform.init(gradients(1.0)))
    jax.tree.map(np.testing.assert_array_equal, updates, GradientClipping(0.5, clip_norm)(gradients(3.0)))


def test_without_a_limit_it_only_monitors():
    clipping = GradientClipping(None)
    jax.tree.map(np.testing.assert_array_equal, clipping(gradients(1e6)), gradients(1e6))
    statistics = clipping.statistics(seen(clipping, [1e6, 2.0]))
    assert statistics["max"] == pytest.approx(1e6)
    assert statistics["clipped"] == 0


NORMS = [3.0, 0.25, 1.5, 0.5, 7.0]


@pytest.mark.parametrize(("clip_norm", "clipped"), [(True, 3), (False, 3)])
def test_statistics_are_those_of_the_norms_before_clipping(clip_norm, clipped):
    clipping = GradientClipping(1.0, clip_norm, monitor=True)
    statistics = clipping.statistics(seen(clipping, NORMS))
    expected = {"mean": np.mean(NORMS), "max": 7.0, "min": 0.25, "last": 7.0}
    assert {name: statistics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert {name: statistics[name] for name in ("count", "clipped", "not_finite")} == {
        "count": 5, "clipped": clipped, "not_finite": 0,
    }  # fmt: skip
    assert {type(value) for value in statistics.values()} == {int, float}


def test_clipping_by_value_counts_steps_with_an_entry_above():
    """Norms of 1.1 have entries up to 0.88."""
    clipping = GradientClipping(1.0, clip_norm=False, monitor=True)
    assert clipping.statistics(seen(clipping, [1.1, 1.3]))["clipped"] == 1
    clipping = GradientClipping(1.0, clip_norm=True, monitor=True)
    assert clipping.statistics(seen(clipping, [1.1, 1.3]))["clipped"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_what_is_not_finite_is_counted_apart_and_poisons_nothing(bad, place):
    clipping = GradientClipping(1.0, monitor=True)
    with_bad = clipping.statistics(seen(clipping, [*NORMS[:place], bad, *NORMS[place:]]))
    clean = clipping.statistics(seen(clipping, NORMS))
    assert with_bad["not_finite"] == 1
    for name in ("mean", "max", "min", "count", "clipped"):
        assert with_bad[name] == pytest.approx(clean[name], rel=1e-6)
    assert math.isfinite(with_bad["last"]) == (place < 5)


def test_before_the_first_step_nothing_is_known():
    clipping = GradientClipping(monitor=True)
    statistics = clipping.statistics(seen(clipping, []))
    assert all(math.isnan(statistics[name]) for name in ("mean", "max", "min", "last"))
    assert statistics["count"] == statistics["clipped"] == statistics["not_finite"] == 0


def test_statistics_are_found_under_accumulation_and_masks():
    clipping = GradientClipping(1.0, monitor=True)
    inner = optax.chain(
        optax.identity(), optax.masked(optax.chain(clipping.transform(), optax.sgd(0.1)), True)
    )
    state = seen(clipping, [1.0, 5.0, 2.0, 2.0, 100.0], optax.MultiSteps(inner, 2).gradient_transformation())
    statistics = clipping.statistics(state)
    assert statistics["count"] == 2
    assert statistics["mean"] == pytest.approx(2.5)
    assert statistics["max"] == pytest.approx(3.0)


def test_reset_begins_anew_and_leaves_the_rest():
    clipping = GradientClipping(1.0, monitor=True)
    state = seen(clipping, NORMS)
    again = clipping.reset(state)
    assert clipping.statistics(again)["count"] == 0
    assert clipping.statistics(state)["count"] == 5
    assert jax.tree.map(jax.typeof, again) == jax.tree.map(jax.typeof, state)
    jax.tree.map(np.testing.assert_array_equal, again[1:], state[1:])


def test_a_state_without_a_record_or_with_two_is_refused():
    plain = optax.adam(0.1).init(gradients(1.0))
    with pytest.raises(ValueError, match=r"holds 0 gradient records.*monitor=True"):
        GradientClipping.statistics(plain)
    clipping = GradientClipping(monitor=True)
    twice = optax.chain(clipping.transform(), clipping.transform()).init(gradients(1.0))
    with pytest.raises(ValueError, match="holds 2 gradient records"):
        clipping.statistics(twice)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_above_0_is_refused(value):
    with pytest.raises(ValueError, match=f"clip_value = {value}: must be above 0"):
        GradientClipping(value)
