"""What a loss can be at most and at least, whatever the network says; bounds in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forestgaps_jax.loss import (
    AdaptiveLoss,
    BCELoss,
    ComboLoss,
    DiceLoss,
    FocalLoss,
    HuberLoss,
    MAELoss,
    MSELoss,
    bce_loss,
    combined_regression_loss,
    dice_loss,
    focal_dice_loss,
    focal_loss,
    huber_loss,
    smooth_labels,
)
from tests.loss.oracles import SHAPE, cross_entropy, dice, focal, masked_case, run

SOME = settings(max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)
SPREADS = st.sampled_from([0.01, 1.0, 10.0, 100.0, 1e4])
ROUNDING = 1 + 1e-5


def pixels(seed, spread):
    """Logits and targets, valid, and the logits and targets of the valid pixels alone, in float64."""
    logits, targets, valid, _ = masked_case(seed)
    logits = (logits * np.float32(spread)).astype(np.float32)
    known = logits[valid].astype(float), targets[valid].astype(float)
    return (jnp.asarray(logits), jnp.asarray(targets)), jnp.asarray(valid), *known


@SOME
@given(SEEDS, SPREADS)
def test_cross_entropy_is_the_depth_on_the_wrong_side_and_at_most_ln_2_more(seed, spread):
    given, valid, x, y = pixels(seed, spread)
    depth = np.maximum(np.where(y == 1, -x, x), 0).mean()
    value = float(bce_loss(*given, valid=valid))
    assert depth / ROUNDING <= value <= (depth + math.log(2)) * ROUNDING


@SOME
@given(SEEDS, SPREADS, st.floats(0, 1), st.floats(0, 6), st.floats(0, 6))
def test_focal_loss_is_cross_entropy_made_less_the_more_it_focuses(seed, spread, alpha, gamma, more):
    given, valid, x, y = pixels(seed, spread)
    weak, strong, whole = (
        float(focal_loss(*given, alpha=a, gamma=g, valid=valid))
        for a, g in ((alpha, gamma), (alpha, gamma + more), (None, gamma))
    )
    assert 0 <= strong <= weak * ROUNDING <= max(alpha, 1 - alpha) * cross_entropy(x, y).mean() * ROUNDING**2
    # The two classes' weights are parts of one.
    mirrored = float(focal_loss(*given, alpha=1 - alpha, gamma=gamma, valid=valid))
    assert weak + mirrored == pytest.approx(whole, rel=1e-4, abs=1e-30)
    assert weak == pytest.approx(focal(*given, alpha, gamma, np.asarray(valid)), rel=1e-4, abs=1e-30)


@SOME
@given(SEEDS, SPREADS, st.floats(0, 100), st.floats(0, 0.9), st.sampled_from(["batch", "image"]))
def test_dice_loss_is_a_share(seed, spread, smooth, smoothing, reduction):
    (logits, targets), valid, _, _ = pixels(seed, spread)
    labels = smooth_labels(targets, smoothing)
    value = float(dice_loss(logits, labels, smooth=smooth, reduction=reduction, valid=valid))
    assert 0 <= value <= ROUNDING
    weight = jnp.asarray([0.0, 1e-3, 7.0])
    weighted = dice_loss(
        logits, labels, smooth=smooth, reduction=reduction, valid=valid, sample_weight=weight
    )
    # Weights of the sums cancel, those of images are of a mean.
    assert 0 <= float(weighted) <= (1 if reduction == "batch" else float(weight.max())) * ROUNDING


@SOME
@given(SEEDS, SPREADS, st.floats(0, 1), st.floats(0, 1), st.floats(0, 6))
def test_the_combined_loss_lies_between_its_parts(seed, spread, alpha, focal_alpha, gamma):
    given, valid, _, _ = pixels(seed, spread)
    parts = focal(*given, focal_alpha, gamma, np.asarray(valid)), dice(*given, valid=np.asarray(valid))
    value = focal_dice_loss(*given, alpha=alpha, gamma=gamma, focal_alpha=focal_alpha, valid=valid)
    assert min(parts) / ROUNDING - 1e-6 <= float(value) <= max(parts) * ROUNDING + 1e-6


@SOME
@given(SEEDS, SPREADS, st.tuples(*[st.floats(0, 5)] * 3))
def test_combo_is_linear_in_its_shares(seed, spread, shares):
    given, valid, x, y = pixels(seed, spread)
    masks = {"valid": np.asarray(valid)}
    parts = cross_entropy(x, y).mean(), dice(*given, **masks), focal(*given, **masks)
    value = float(ComboLoss(shares)(*given, valid=valid))
    assert value == pytest.approx(np.dot(shares, parts), rel=1e-4, abs=1e-5)


@SOME
@given(SEEDS, st.floats(0, 0.99))
def test_smoothed_labels_keep_their_order_and_their_middle(seed, smoothing):
    y = np.random.default_rng(seed).random(20).astype(np.float32)
    smooth, mirrored = (np.float64(smooth_labels(jnp.asarray(x), smoothing)) for x in (y, 1 - y))
    np.testing.assert_allclose(smooth - 0.5, (1 - smoothing) * (y.astype(float) - 0.5), atol=1e-6)
    np.testing.assert_allclose(smooth + mirrored, 1, atol=1e-6)
    assert (smooth >= smoothing / 2 - 1e-7).all()
    assert (smooth <= 1 - smoothing / 2 + 1e-7).all()


@SOME
@given(SEEDS, SPREADS, st.floats(0, 0.99))
def test_no_prediction_of_smoothed_labels_costs_less_than_their_entropy(seed, spread, smoothing):
    (logits, targets), valid, _, _ = pixels(seed, spread)
    loss = BCELoss(label_smoothing=smoothing)
    least = -sum(p * math.log(p) for p in (smoothing / 2, 1 - smoothing / 2) if p)
    assert float(loss(logits, targets, valid=valid)) >= least / ROUNDING - 1e-6
    if smoothing > 1e-6:
        best = (2 * targets - 1) * math.log(2 / smoothing - 1)
        assert float(loss(best, targets, valid=valid)) == pytest.approx(least, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", [BCELoss(), BCELoss(label_smoothing=0.2), FocalLoss(0.5), FocalLoss(None)])
@settings(max_examples=8)
@given(SEEDS, SPREADS)
def test_gap_and_no_gap_may_change_places(loss, seed, spread):
    (logits, targets), valid, _, _ = pixels(seed, spread)
    value, slope = run(loss, logits, targets, valid)
    value_mirrored, slope_mirrored = run(loss, -logits, 1 - targets, valid)
    assert value_mirrored == pytest.approx(value, rel=1e-5, abs=1e-30)
    np.testing.assert_allclose(slope_mirrored, -slope, rtol=1e-4, atol=1e-9)


# Learnt weights

LEARNT = AdaptiveLoss((FocalLoss(), DiceLoss(), BCELoss()), max_weight=10.0)
learnt = jax.jit(
    lambda params, *given: jax.value_and_grad(lambda p: LEARNT(*given[:2], params=p, valid=given[2]))(params)
)


def least_of(part):
    """The least that a part can cost with a weight ``w`` of 0.1 to 10: of ``w L - log w``."""
    weight = np.clip(1 / part, 0.1, 10)
    return weight * part - np.log(weight)


@SOME
@given(SEEDS, SPREADS, st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3))
@example(0, 1.0, [3e38, -3e38, 1e-45])
def test_fault_07_no_weights_cost_less_than_the_best_ones_within_their_range(seed, spread, log_variance):
    given, valid, _, _ = pixels(seed, spread)
    masks = {"valid": np.asarray(valid)}
    parts = np.array([focal(*given, **masks), dice(*given, **masks), focal(*given, None, 0.0, **masks)])
    least = least_of(np.maximum(parts, 1e-30)).sum()
    value, slope = learnt({"log_variance": jnp.asarray(log_variance, jnp.float32)}, *given, valid)
    assert float(value) >= least - 1e-4 * (1 + abs(least))
    assert np.isfinite(slope["log_variance"]).all()
    best = {"log_variance": jnp.asarray(np.log(np.clip(parts, 0.1, 10)), jnp.float32)}
    assert float(learnt(best, *given, valid)[0]) == pytest.approx(least, rel=1e-4, abs=1e-4)


# Heights


@SOME
@given(SEEDS, st.sampled_from([0.0, 1e-3, 1.0, 30.0, 2000.0]), st.floats(0.01, 100), st.floats(0, 1))
def test_losses_of_heights_are_ordered_as_their_formulas_say(seed, spread, delta, share):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 60, SHAPE).astype(np.float32)
    guess = (truth + rng.normal(0, spread, SHAPE)).astype(np.float32)
    valid = rng.random(SHAPE) < 0.6
    masks = {"valid": jnp.asarray(valid)}
    given = jnp.asarray(np.where(valid, guess, np.nan)), jnp.asarray(np.where(valid, truth, np.nan))
    mse, mae, huber = (
        float(loss(*given, **masks)) for loss in (MSELoss(), MAELoss(), HuberLoss(delta))
    )  # fmt: skip
    errors = np.abs(guess.astype(float) - truth)[valid]
    assert errors.min() / ROUNDING <= mae <= math.sqrt(mse) * ROUNDING <= errors.max() * ROUNDING**2
    assert huber <= min(mse / 2, delta * mae) * ROUNDING
    assert huber >= delta * (mae - delta / 2) / ROUNDING - 1e-5 * delta * mae
    mixed = combined_regression_loss(*given, mse_weight=share, mae_weight=1 - share, **masks)
    assert min(mse, mae) / ROUNDING <= float(mixed) <= max(mse, mae) * ROUNDING
    # Up to its delta, Huber's is the half of the square.
    wide = huber_loss(*given, delta=float(errors.max()) * 1.01 + 1e-6, **masks)
    assert float(wide) == pytest.approx(mse / 2, rel=1e-4)
    assert (mse == 0) == (mae == 0) == (errors.max() == 0)
