import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from forestgaps_jax.metrics import RegressionMetrics, RegressionSums, regression_metrics

SHAPE = (4, 8, 8, 1)
NAMES = ("mse", "rmse", "mae", "r2", "bias", "n_pixels")

update = jax.jit(lambda sums, *args, **kwargs: sums.update(*args, **kwargs))
merge = jax.jit(RegressionSums.merge)


def heights(seed, shape=SHAPE, mean=20.0, spread=8.0, error=2.0):
    """True canopy heights, and predictions 0.5 m too high, with an error."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(mean, spread, shape).astype(np.float32)
    return (truth + rng.normal(0.5, error, shape)).astype(np.float32), truth


def sums_of(predictions, targets, groups=1, **kwargs):
    kwargs = {name: jnp.asarray(value) for name, value in kwargs.items()}
    return update(RegressionSums.zeros(groups), jnp.asarray(predictions), jnp.asarray(targets), **kwargs)


def oracle(predictions, targets):
    predictions, targets = (np.ravel(x).astype(float) for x in (predictions, targets))
    return {
        "mse": sk.mean_squared_error(targets, predictions),
        "rmse": sk.root_mean_squared_error(targets, predictions),
        "mae": sk.mean_absolute_error(targets, predictions),
        "r2": sk.r2_score(targets, predictions),
        "bias": np.mean(predictions - targets),
        "n_pixels": targets.size,
    }


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-50, 2000), st.floats(0.5, 50), st.floats(0.1, 1))
def test_metrics_are_those_of_scikit_learn_on_the_valid_pixels(seed, mean, spread, share):
    predictions, targets = heights(seed, mean=mean, spread=spread)
    valid = np.random.default_rng(seed).random(SHAPE) < share
    dirty = [np.where(valid, x, np.nan) for x in (predictions, targets)]
    found = regression_metrics(sums_of(*dirty, valid=valid))
    assert found == pytest.approx(oracle(predictions[valid], targets[valid]), rel=1e-4, abs=1e-4)
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize(("mean", "spread"), [(20.0, 8.0), (20.0, 0.5), (400.0, 8.0)])
def test_ten_million_pixels_in_updates_are_those_of_float64(mean, spread):
    rng = np.random.default_rng(3)
    sums, parts = RegressionSums.zeros(1), []
    for _ in range(50):
        # Each batch from a forest of its own height.
        part = heights(rng.integers(2**31), (8, 160, 160, 1), mean + rng.normal(0, spread), spread)
        parts.append(part)
        sums = update(sums, *map(jnp.asarray, part))
    predictions, targets = (np.concatenate(each) for each in zip(*parts, strict=True))
    assert targets.size > 1e7
    found, expected = regression_metrics(sums), oracle(predictions, targets)
    assert found["n_pixels"] == targets.size
    for name in ("mse", "rmse", "mae", "r2", "bias"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_small_errors_are_not_lost_after_large_ones():
    """In float32 alone, each of these updates would vanish against the sum."""
    large, one = jnp.full((1, 1024), 4096.0), jnp.ones((1, 1))
    sums = functools.reduce(lambda s, _: update(s, large, 0 * large), range(8), RegressionSums.zeros(1))
    for _ in range(1000):
        sums = update(sums, one, 0 * one)
    assert sums.to_numpy()[0, 3] == 8 * 1024 * 4096.0**2 + 1000


def test_merging_in_any_order_is_adding_together():
    parts = [heights(seed, mean=mean) for seed, mean in ((1, 2.0), (2, 30.0), (3, 18.0))]
    expected = oracle(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    for a, b, c in itertools.permutations(sums_of(*part) for part in parts):
        assert regression_metrics(merge(merge(a, b), c)) == pytest.approx(expected, rel=1e-5)
        assert regression_metrics(merge(a, merge(b, c))) == pytest.approx(expected, rel=1e-5)


def test_each_sample_is_added_to_its_row_and_rows_together_are_the_whole():
    predictions, targets = heights(4)
    targets[1] += 30
    group = np.array([2, 0, 2, 2])
    rows = sums_of(predictions, targets, groups=3, group=group).to_numpy()
    for row in (0, 2):
        mine = group == row
        assert regression_metrics(rows[row]) == pytest.approx(
            oracle(predictions[mine], targets[mine]), rel=1e-5
        )
    assert regression_metrics(rows) == pytest.approx(oracle(predictions, targets), rel=1e-5)
    assert rows[1].tolist() == [0] * 6


def test_without_pixels_all_is_undefined():
    nothing = sums_of(*heights(5), valid=np.zeros(SHAPE, bool))
    for sums in (RegressionSums.zeros(2), nothing):
        found = regression_metrics(sums)
        assert found.pop("n_pixels") == 0.0
        assert tuple(found) == NAMES[:-1]
        assert all(map(math.isnan, found.values()))


@pytest.mark.parametrize("height", [0.0, 20.1, 1234.567])
def test_r2_of_one_and_the_same_height_is_undefined(height):
    truth = np.full(SHAPE, height, np.float32)
    sums = sums_of(truth + np.float32(0.5), truth)
    found = regression_metrics(update(sums, jnp.asarray(truth), jnp.asarray(truth)))
    assert math.isnan(found["r2"])
    assert found["mse"] == pytest.approx(0.125, rel=1e-3)


def test_a_prediction_without_a_number_is_not_hidden():
    predictions, targets = heights(6)
    predictions[0, 0, 0] = np.nan
    assert math.isnan(regression_metrics(sums_of(predictions, targets))["mse"])


def test_sums_of_a_step_stay_a_tree_of_arrays():
    sums = sums_of(*heights(7), groups=2)
    assert jax.tree.map(jnp.shape, jax.tree.leaves(sums)) == [(2,), (2,), (2, 5), (2, 5)]
    donated = jax.jit(RegressionSums.merge, donate_argnums=0)(RegressionSums.zeros(2), sums)
    np.testing.assert_allclose(donated.to_numpy(), sums.to_numpy())


def test_shapes_that_would_broadcast_are_refused():
    predictions, targets = map(jnp.asarray, heights(8))
    with pytest.raises(ValueError, match=r"targets have shape \(4, 8, 8\), predictions \(4, 8, 8, 1\)"):
        RegressionSums.zeros(1).update(predictions, targets[..., 0])


# By hand


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_by_hand_over_all_and_per_height(to):
    predictions, targets = heights(9)
    valid = np.random.default_rng(9).random(SHAPE) < 0.7
    values = np.float32([5, 15, 5.0004, 5])
    metrics, plain = RegressionMetrics([5, 10, 15]), RegressionMetrics()
    for part in (slice(0, 1), slice(1, 4)):
        given = [to(x[part]) for x in (predictions, targets[..., 0], valid)]
        metrics.update(*given, to(values[part]))
        plain.update(*given)
    found = metrics.compute()
    by_height = found.pop("threshold_metrics")
    assert list(by_height) == [5.0, 15.0]
    assert found == pytest.approx(oracle(predictions[valid], targets[valid]), rel=1e-5)
    assert plain.compute() == pytest.approx(found)
    for height, row in by_height.items():
        mine = (abs(values - height) < 1)[:, None, None, None] & valid
        assert row == pytest.approx(oracle(predictions[mine], targets[mine]), rel=1e-5)
    plain.reset()
    assert plain.compute()["n_pixels"] == 0


def test_updates_by_hand_wait_for_nothing():
    metrics, given = RegressionMetrics([5.0]), list(map(jnp.asarray, heights(10)))

    @jax.jit
    def trace(predictions, targets, values):
        metrics.update(predictions, targets, None, values)
        return values

    with jax.transfer_guard("disallow"):
        metrics.update(*given, threshold_value=np.float32(5))
    trace(*given, jnp.full(4, 5.0))  # where any look at a value is an error
    metrics.reset()


def test_heights_that_are_not_listed_or_not_asked_for_are_refused():
    given = heights(11)
    with pytest.raises(ValueError, match=r"threshold_value is given, but no list"):
        RegressionMetrics().update(*given, threshold_value=5.0)
    metrics = RegressionMetrics([5.0, 10.0])
    with pytest.raises(ValueError, match="threshold_value is missing"):
        metrics.update(*given)
    with pytest.raises(ValueError, match=r"threshold_value = 6: must be one of \[5.0, 10.0\] m"):
        metrics.update(*given, threshold_value=6.0)
    metrics.update(*given, threshold_value=jnp.asarray(6.0))
    with pytest.raises(ValueError, match=r"some sample: must be one of \[5.0, 10.0\] m"):
        metrics.compute()


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match="pass one of the two channels"):
        RegressionMetrics().update(np.zeros((1, 4, 4, 2)), np.zeros((1, 4, 4)))
