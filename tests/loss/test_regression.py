import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forestgaps_jax.loss import (
    CombinedRegressionLoss,
    HuberLoss,
    MAELoss,
    MSELoss,
    combined_regression_loss,
    huber_loss,
    mae_loss,
    mse_loss,
)
from tests.loss.oracles import SHAPE, finite_differences, run


def huber(errors, delta):
    return np.where(np.abs(errors) <= delta, errors**2 / 2, delta * (np.abs(errors) - delta / 2))


# Each class, its function, and the loss of an error in float64.
LOSSES = [
    (MSELoss(), mse_loss, np.square),
    (MAELoss(), mae_loss, np.abs),
    (HuberLoss(), huber_loss, functools.partial(huber, delta=1.0)),
    (HuberLoss(2.5), functools.partial(huber_loss, delta=2.5), functools.partial(huber, delta=2.5)),
    (CombinedRegressionLoss(), combined_regression_loss, lambda e: (e**2 + np.abs(e)) / 2),
    (
        CombinedRegressionLoss(0.1, 2.0),
        functools.partial(combined_regression_loss, mse_weight=0.1, mae_weight=2.0),
        lambda e: 0.1 * e**2 + 2 * np.abs(e),
    ),
]
ALL = pytest.mark.parametrize(("loss", "function", "oracle"), LOSSES, ids=[repr(x[0]) for x in LOSSES])


def heights(seed=0):
    """Predicted and true heights, valid pixels (NaN elsewhere), sample and pixel weights."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 30, SHAPE).astype(np.float32)
    guess = (truth + rng.normal(0, 3, SHAPE)).astype(np.float32)
    valid = rng.random(SHAPE) < 0.6
    weights = rng.uniform(0.2, 3, SHAPE[0]).astype(np.float32), rng.uniform(0, 2, SHAPE).astype(np.float32)
    return np.where(valid, guess, np.nan), np.where(valid, truth, np.nan), valid, *weights


def expected(oracle, guess, truth, valid, sample_weight, pixel_weight):
    factors = pixel_weight.astype(np.float64) * sample_weight[:, None, None, None]
    errors = np.asarray(guess, np.float64) - truth
    return (factors * oracle(errors))[valid].sum() / valid.sum()


@ALL
def test_value_and_gradient_are_those_of_the_formula(loss, function, oracle):
    guess, truth, valid, sample_weight, pixel_weight = heights()
    hidden = jnp.asarray(np.where(valid, pixel_weight, np.nan))
    for each in (loss, function):
        value, slope = run(
            lambda *a, each=each, **k: each(*a, pixel_weight=hidden, **k), guess, truth, valid, sample_weight
        )
        of_guess = functools.partial(
            expected, oracle, truth=truth, valid=valid, sample_weight=sample_weight, pixel_weight=pixel_weight
        )
        assert value == pytest.approx(of_guess(guess), rel=1e-5)
        np.testing.assert_allclose(slope, finite_differences(of_guess, guess), rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(slope[~valid], 0)


@pytest.mark.parametrize(
    ("function", "of_optax"),
    [
        (mse_loss, optax.losses.squared_error),
        (mae_loss, lambda p, t: jnp.abs(p - t)),
        (functools.partial(huber_loss, delta=2.5), functools.partial(optax.losses.huber_loss, delta=2.5)),
    ],
)
def test_the_mean_is_that_of_optax(function, of_optax):
    rng = np.random.default_rng(1)
    guess, truth = (jnp.asarray(rng.uniform(0, 30, SHAPE), jnp.float32) for _ in range(2))
    assert float(function(guess, truth)) == pytest.approx(float(of_optax(guess, truth).mean()), rel=1e-5)


@ALL
def test_no_valid_pixel_gives_zero_with_zero_gradient(loss, function, oracle):
    nothing = np.full(SHAPE, np.nan, np.float32)
    value, slope = run(loss, nothing, nothing, np.zeros(SHAPE, bool), np.ones(SHAPE[0], np.float32))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@ALL
def test_exact_heights_cost_nothing_and_pull_nowhere(loss, function, oracle):
    truth = np.full(SHAPE, 12.5, np.float32)
    value, slope = run(loss, truth, truth)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@ALL
def test_half_precision_gives_a_float32_scalar(loss, function, oracle):
    result = loss(jnp.full(SHAPE, 300.0, jnp.float16), jnp.zeros(SHAPE, jnp.float16))  # 300² > 65504
    assert (result.shape, result.dtype) == ((), jnp.float32)
    assert float(result) == pytest.approx(oracle(np.float64(300)), rel=1e-6)


@ALL
def test_class_is_of_heights_hashable_and_serves_compiled(loss, function, oracle):
    assert (loss.target, loss.learns, loss.needs_threshold) == ("chm", False, False)
    guess, truth, valid, _, _ = map(jnp.asarray, heights(2))
    compiled = jax.jit(lambda loss, *a: loss(*a[:2], valid=a[2]), static_argnums=0)
    assert float(compiled(loss, guess, truth, valid)) == pytest.approx(
        float(function(guess, truth, valid=valid)), rel=1e-6
    )


@ALL
@pytest.mark.parametrize("wrong", ["targets", "valid", "pixel_weight"])
def test_shapes_that_would_broadcast_are_refused(loss, function, oracle, wrong):
    given = {"targets": jnp.zeros(SHAPE), "valid": jnp.ones(SHAPE, bool), "pixel_weight": jnp.ones(SHAPE)}
    given[wrong] = given[wrong][..., 0]
    with pytest.raises(ValueError, match=rf"{wrong} ha.* shape \(3, 4, 5\).*\(3, 4, 5, 1\)"):
        loss(jnp.zeros(SHAPE), **given)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_a_huber_delta_that_is_not_above_0_is_refused(delta):
    with pytest.raises(ValueError, match=r"delta = .*: must be above 0"):
        huber_loss(jnp.zeros(SHAPE), jnp.zeros(SHAPE), delta=delta)
