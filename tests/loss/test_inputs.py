import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax.loss import (
    AdaptiveLoss,
    BCELoss,
    CombinedFocalDiceLoss,
    ComboLoss,
    DiceLoss,
    FocalLoss,
    bce_loss,
    dice_loss,
    focal_dice_loss,
    focal_loss,
    smooth_labels,
)
from forestgaps_jax.loss.inputs import logits_from_probabilities
from tests.loss.oracles import FEW, SHAPE, case, cross_entropy, dice, focal, masked_case, run, sigmoid

GAP_LOSSES = [FocalLoss, DiceLoss, BCELoss, CombinedFocalDiceLoss, ComboLoss, AdaptiveLoss]
FUNCTIONS = [focal_loss, dice_loss, bce_loss, focal_dice_loss]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("kind", GAP_LOSSES)
def test_loss_of_probabilities_is_that_of_their_logits(kind):
    logits, targets, valid, weight = masked_case(0)
    value, slope = run(kind(), logits, targets, valid, weight)
    p = np.where(valid, sigmoid(np.where(valid, logits, 0)), np.nan).astype(np.float32)
    value_of_p, slope_of_p = run(kind(from_logits=False), p, targets, valid, weight)
    assert value_of_p == pytest.approx(value, rel=1e-5)
    chain = np.where(valid, p * (1.0 - p), 0)  # dp/dx
    np.testing.assert_allclose(np.where(valid, slope_of_p * chain, 0), slope, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_of_probabilities_is_that_of_their_logits(function):
    logits, targets = map(jnp.asarray, case(1))
    expected = float(function(logits, targets))
    assert float(function(jax.nn.sigmoid(logits), targets, from_logits=False)) == pytest.approx(expected)


@pytest.mark.parametrize(("loss", "oracle"), [(FocalLoss, focal), (DiceLoss, dice)])
def test_value_of_probabilities_is_that_of_the_formula(loss, oracle):
    logits, targets = case(2)
    value, _ = run(loss(from_logits=False), sigmoid(logits).astype(np.float32), targets)
    assert value == pytest.approx(oracle(logits, targets), rel=1e-5)


@pytest.mark.parametrize(("dtype", "bits"), [(jnp.float32, 23), (jnp.bfloat16, 23), (jnp.float16, 14)])
def test_wrong_and_certain_probabilities_cost_finitely_and_pull_hard(dtype, bits):
    p = jnp.asarray([[0.0, 1.0]], dtype)
    value, slope = run(BCELoss(from_logits=False), p, np.float32([[1, 0]]))
    assert value == pytest.approx(bits * np.log(2), rel=1e-4)
    np.testing.assert_allclose(slope, [[-(2.0**bits) / 2, 2.0**bits / 2]], rtol=1e-2)


@pytest.mark.parametrize("kind", GAP_LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fault_05_gradient_of_the_most_wrong_probabilities_lives(kind, dtype):
    _, targets = case(3)
    wrong = np.random.default_rng(3).random(SHAPE) < 0.5
    value, slope = run(
        kind(from_logits=False), jnp.asarray(np.where(wrong, 1 - targets, targets), dtype), targets
    )
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(np.sign(slope)[wrong], (1 - 2 * targets)[wrong])


def test_right_and_certain_probabilities_cost_next_to_nothing():
    _, targets = case(4)
    value, slope = run(CombinedFocalDiceLoss(from_logits=False), targets, targets)
    assert value == pytest.approx(0, abs=1e-6)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.5, 7.0, np.inf])
def test_probabilities_outside_0_to_1_are_refused_with_what_was_given(wrong):
    logits, targets = case(5)
    p = jnp.asarray(sigmoid(logits), jnp.float32).at[0, 0, 0, 0].set(wrong)
    for loss in (DiceLoss(from_logits=False), AdaptiveLoss(from_logits=False)):
        with pytest.raises(ValueError, match=rf"{wrong}.*must be from 0 to 1.*from_logits=True"):
            loss(p, jnp.asarray(targets))
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        focal_loss(p, jnp.asarray(targets), from_logits=False)


def test_pixels_without_data_may_hold_anything_but_probabilities():
    p = jnp.asarray([[0.5, np.nan, -7.0, np.inf]])
    valid = jnp.asarray([[True, False, False, False]])
    value, slope = run(BCELoss(from_logits=False), p, np.ones((1, 4), np.float32), valid)
    assert value == pytest.approx(np.log(2), rel=1e-6)
    np.testing.assert_allclose(slope, [[-2, 0, 0, 0]], rtol=1e-6)


def test_compiled_values_are_not_looked_at_and_stay_finite():
    wild = jnp.asarray([[-3.0, 40.0]])
    value, slope = jax.jit(jax.value_and_grad(BCELoss(from_logits=False)))(wild, jnp.asarray([[1.0, 0.0]]))
    assert float(value) == pytest.approx(23 * np.log(2), rel=1e-4)
    assert np.isfinite(slope).all()


@FEW
@given(st.floats(2.0**-23, 1 - 2.0**-23, width=32))
def test_logit_is_that_of_the_formula(p):
    value = float(logits_from_probabilities(jnp.asarray([p]))[0])
    assert value == pytest.approx(np.log(p) - np.log1p(-p), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
def test_smooth_labels_are_those_of_optax_for_two_classes(smoothing, dtype):
    targets = np.asarray([0, 1, 1, 0], dtype)
    one_hot = np.stack([1 - targets.astype(np.float32), targets.astype(np.float32)], -1)
    expected = optax.smooth_labels(one_hot, smoothing)[:, 1]
    result = smooth_labels(jnp.asarray(targets), smoothing)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 3, float("nan")])
@pytest.mark.parametrize("kind", GAP_LOSSES)
def test_smoothing_outside_its_range_is_refused_when_the_loss_is_made(kind, smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing = .* from 0 to below 1"):
        kind(label_smoothing=smoothing)
    with pytest.raises(ValueError, match=r"label_smoothing = .* from 0 to below 1"):
        smooth_labels(jnp.zeros(3), smoothing)


def test_bce_of_smoothed_labels_is_that_of_the_soft_formula():
    logits, targets, valid, weight = masked_case(6)
    soft = targets * 0.8 + 0.1
    known = np.where(valid, logits, 0).astype(np.float64)
    terms = cross_entropy(known, soft) * weight.astype(np.float64)[:, None, None, None]
    value, slope = run(BCELoss(label_smoothing=0.2), logits, targets, valid, weight)
    assert value == pytest.approx(terms[valid].mean(), rel=1e-5)
    np.testing.assert_array_equal(slope[~valid], 0)


@pytest.mark.parametrize("kind", GAP_LOSSES)
def test_smoothing_is_of_the_labels_only(kind):
    logits, targets, valid, weight = masked_case(7)
    value, slope = run(kind(label_smoothing=0.2), logits, targets, valid, weight)
    by_hand, slope_by_hand = run(kind(), logits, targets * 0.8 + 0.1, valid, weight)
    assert value == pytest.approx(by_hand, rel=1e-5)
    np.testing.assert_allclose(slope, slope_by_hand, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", GAP_LOSSES)
@pytest.mark.parametrize("filling", [0.0, 1.0, 255.0, np.nan])
def test_smoothing_makes_nothing_of_pixels_without_data(kind, filling):
    logits, targets, valid, _ = masked_case(8)
    filled = np.where(valid, targets, filling).astype(np.float32)
    loss = kind(label_smoothing=0.3)
    assert run(loss, logits, filled, valid)[0] == run(loss, logits, targets, valid)[0]


@pytest.mark.parametrize("kind", GAP_LOSSES)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("wrong", ["targets", "valid"])
def test_shapes_that_would_broadcast_are_refused_by_each_class(kind, from_logits, wrong):
    given = {"targets": jnp.zeros(SHAPE), "valid": jnp.ones(SHAPE, bool)}
    given[wrong] = given[wrong][..., 0]
    with pytest.raises(ValueError, match=rf"{wrong} have shape \(3, 4, 5\).*\(3, 4, 5, 1\)"):
        kind(from_logits=from_logits)(jnp.full(SHAPE, 0.5), given["targets"], valid=given["valid"])
