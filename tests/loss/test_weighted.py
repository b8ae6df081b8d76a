import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.loss import (
    AdaptiveLoss,
    BCELoss,
    CombinedFocalDiceLoss,
    DiceLoss,
    FocalLoss,
    HuberLoss,
    MAELoss,
    ThresholdWeightedLoss,
    ThresholdWeightedRegressionLoss,
)
from tests.loss.oracles import SHAPE, combined, dice, focal, masked_case, run

HEIGHTS, WEIGHTS = (5.0, 10.0, 20.0), (2.0, 0.4, 0.6)
THRESHOLDS = np.float32([3.0, 7.5, 18.0])  # below the first, between, between
FACTORS = np.interp(THRESHOLDS.astype(np.float64), HEIGHTS, WEIGHTS)


def weighted(loss):
    return ThresholdWeightedLoss(loss, HEIGHTS, WEIGHTS)


def at(loss, threshold=THRESHOLDS, **more):
    """The loss with its threshold given."""
    return lambda *args, **kwargs: loss(*args, threshold=jnp.asarray(threshold), **kwargs, **more)


def test_fault_06_weights_are_interpolated_and_hold_outside():
    heights = [0.0, 5.0, 6.0, 10.0, 15.0, 20.0, 99.0]
    result = weighted(BCELoss()).sample_weight(jnp.asarray(heights))
    np.testing.assert_allclose(result, np.interp(heights, HEIGHTS, WEIGHTS), rtol=1e-6)


# Centimetres: apart by one at least, as the settings ask, and in any order; of two lengths, for two compiles.
HEIGHT_LISTS = st.sampled_from([1, 5]).flatmap(
    lambda size: st.lists(st.integers(1, 6000), min_size=size, max_size=size, unique=True)
)


@settings(max_examples=15)
@given(HEIGHT_LISTS, st.integers(0, 2**32 - 1))
def test_fault_06_any_table_weighs_samples_and_pixels_as_numpy_interpolates_it(centimetres, seed):
    rng = np.random.default_rng(seed)
    nodes, factors = np.array(centimetres) / 100, rng.uniform(0, 10, len(centimetres))
    order = np.argsort(nodes)
    at_nodes_and_around = np.concatenate([nodes, rng.uniform(0, 70, 9), [0.0, 1e4]])
    of_samples = ThresholdWeightedLoss(CombinedFocalDiceLoss(), tuple(nodes), tuple(factors))
    of_pixels = ThresholdWeightedRegressionLoss(MAELoss(), tuple(nodes), tuple(factors))
    expected = np.interp(at_nodes_and_around, nodes[order], factors[order])
    for weigh in (of_samples.sample_weight, of_pixels.pixel_weight):
        # Nodes may be a centimetre apart, of which float32 heights keep four digits at 60 m.
        np.testing.assert_allclose(weigh(jnp.asarray(at_nodes_and_around)), expected, rtol=1e-4, atol=1e-2)
    logits, targets, valid, weight = masked_case(seed)
    thresholds = rng.choice(nodes, SHAPE[0])
    value, _ = run(at(of_samples, thresholds), logits, targets, valid, weight)
    listed = factors[[np.flatnonzero(nodes == threshold)[0] for threshold in thresholds]]
    assert value == pytest.approx(combined(logits, targets, valid=valid, weight=listed * weight), rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "oracle"),
    [
        (BCELoss(), lambda *a, **k: focal(*a, alpha=None, gamma=0.0, **k)),
        (FocalLoss(), focal),
        (DiceLoss(), dice),
        (DiceLoss(reduction="image"), lambda *a, **k: dice(*a, reduction="image", **k)),
        (CombinedFocalDiceLoss(), combined),
    ],
    ids=["bce", "focal", "dice", "dice of images", "combined"],
)
def test_fault_06_each_samples_terms_are_multiplied(loss, oracle):
    logits, targets, valid, weight = masked_case(0)
    value, _ = run(at(weighted(loss)), logits, targets, valid)
    assert value == pytest.approx(oracle(logits, targets, valid=valid, weight=FACTORS), rel=1e-5)
    value, _ = run(at(weighted(loss)), logits, targets, valid, weight)
    assert value == pytest.approx(oracle(logits, targets, valid=valid, weight=FACTORS * weight), rel=1e-5)


def test_fault_06_the_batch_mean_of_the_weights_is_not_what_counts():
    logits, targets, valid, _ = masked_case(1)
    logits[0] = np.where(valid[0], 20 * (1 - 2 * targets[0]), np.nan)  # all the error lies in sample 0
    value, slope = run(at(weighted(BCELoss())), logits, targets, valid)
    plain, plain_slope = run(BCELoss(), logits, targets, valid)
    assert value > 1.2 * FACTORS.mean() * plain
    for b in range(3):
        np.testing.assert_allclose(slope[b], FACTORS[b] * plain_slope[b], rtol=1e-5)


def test_fault_06_equal_weights_of_one_change_nothing():
    logits, targets, valid, weight = masked_case(2)
    same = ThresholdWeightedLoss(CombinedFocalDiceLoss(), HEIGHTS, (1.0, 1.0, 1.0))
    value, slope = run(at(same), logits, targets, valid, weight)
    expected, expected_slope = run(CombinedFocalDiceLoss(), logits, targets, valid, weight)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-5)


def test_one_threshold_for_all_and_one_listed_height():
    logits, targets, valid, _ = masked_case(3)
    plain, _ = run(BCELoss(), logits, targets, valid)
    assert run(at(weighted(BCELoss()), 5.0), logits, targets, valid)[0] == pytest.approx(2 * plain, rel=1e-5)
    alone = ThresholdWeightedLoss(BCELoss(), (5.0,), (3.0,))
    assert run(at(alone), logits, targets, valid)[0] == pytest.approx(3 * plain, rel=1e-5)


def test_thresholds_in_any_order_are_kept_rising_and_hashable():
    loss = ThresholdWeightedLoss(BCELoss(), [20, 5, 10], [0.6, 2, 0.4])
    assert loss == weighted(BCELoss())
    assert hash(loss) == hash(weighted(BCELoss()))


def test_it_works_compiled_as_a_static_argument():
    logits, targets, valid, _ = masked_case(4)

    def step(loss, threshold):
        return loss(jnp.asarray(logits), jnp.asarray(targets), valid=jnp.asarray(valid), threshold=threshold)

    value = jax.jit(step, static_argnums=0)(weighted(DiceLoss()), jnp.asarray(THRESHOLDS))
    assert float(value) == pytest.approx(dice(logits, targets, valid=valid, weight=FACTORS), rel=1e-5)


def test_around_a_loss_that_learns_the_params_pass_through():
    inner = AdaptiveLoss((FocalLoss(), DiceLoss()), initial_weights=(2.0, 0.5))
    loss = weighted(inner)
    assert loss.learns
    assert loss.needs_threshold
    np.testing.assert_array_equal(loss.init()["log_variance"], inner.init()["log_variance"])
    logits, targets, valid, _ = masked_case(5)
    s = np.array([0.5, -0.3])
    params = {"log_variance": jnp.asarray(s, jnp.float32)}
    parts = [oracle(logits, targets, valid=valid, weight=FACTORS) for oracle in (focal, dice)]
    value, _ = run(at(loss, params=params), logits, targets, valid)
    assert value == pytest.approx((np.exp(-s) * parts + s).sum(), rel=1e-5)
    first = (np.array([2.0, 0.5]) * parts - np.log([2.0, 0.5])).sum()
    assert run(at(loss), logits, targets, valid)[0] == pytest.approx(first, rel=1e-5)


def test_around_a_loss_that_learns_nothing_it_learns_nothing():
    loss = weighted(BCELoss())
    assert not loss.learns
    assert loss.target == "mask"
    with pytest.raises(TypeError, match="learns nothing"):
        loss.init()


@pytest.mark.parametrize("kind", [ThresholdWeightedLoss, ThresholdWeightedRegressionLoss])
@pytest.mark.parametrize(
    ("heights", "weights", "message"),
    [
        ((5.0, 10.0), (1.0,), "one weight for each"),
        ((), (), "one weight for each"),
        ((5.0, 5.0), (1.0, 2.0), "each threshold once"),
        ((5.0, 10.0), (1.0, -1.0), "must be finite, weights 0 or more"),
        ((5.0, float("nan")), (1.0, 1.0), "must be finite"),
        ((5.0, 10.0), (1.0, float("inf")), "must be finite"),
    ],
)
def test_tables_that_do_not_fit_are_refused(kind, heights, weights, message):
    with pytest.raises(ValueError, match=message):
        kind(BCELoss(), heights, weights)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1)])
def test_thresholds_that_are_not_one_a_sample_are_refused(shape):
    logits, targets = jnp.zeros((3, 4)), jnp.zeros((3, 4))
    with pytest.raises(ValueError, match=r"threshold has shape .*must be \(3,\)"):
        weighted(BCELoss())(logits, targets, threshold=jnp.ones(shape))


def test_sample_weights_that_are_not_one_a_sample_are_refused(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    zeros = jnp.zeros((3, 4))
    with pytest.raises(ValueError, match=r"sample_weight has shape \(1,\): must be \(3,\)"):
        weighted(BCELoss())(zeros, zeros, threshold=jnp.ones(3), sample_weight=jnp.ones(1))


def test_weights_are_given_only_once():
    with pytest.raises(ValueError, match="has threshold weights already"):
        weighted(CombinedFocalDiceLoss(threshold_weights={5.0: 1.0}))
    with pytest.raises(ValueError, match="has threshold weights already"):
        weighted(weighted(BCELoss()))


@pytest.mark.parametrize(
    "given",
    [{5.0: 2.0, 10.0: 0.4, 20.0: 0.6}, ((5.0, 2.0), (10.0, 0.4), (20.0, 0.6)), {20: 0.6, 5: 2, 10: 0.4}],
    ids=["mapping", "pairs", "disordered"],
)
def test_fault_06_the_combined_loss_takes_weights_by_itself(given):
    loss = CombinedFocalDiceLoss(alpha=0.3, gamma=1.0, threshold_weights=given)
    assert loss.threshold_weights == ((5.0, 2.0), (10.0, 0.4), (20.0, 0.6))
    assert hash(loss) == hash(CombinedFocalDiceLoss(alpha=0.3, gamma=1.0, threshold_weights=given))
    logits, targets, valid, weight = masked_case(6)
    value, _ = run(at(loss), logits, targets, valid, weight)
    expected = combined(logits, targets, alpha=0.3, gamma=1.0, valid=valid, weight=FACTORS * weight)
    assert value == pytest.approx(expected, rel=1e-5)
    plain = CombinedFocalDiceLoss(alpha=0.3, gamma=1.0)
    at_ten = combined(logits, targets, alpha=0.3, gamma=1.0, valid=valid, weight=[0.4] * 3)
    assert run(at(loss, 10.0), logits, targets, valid)[0] == pytest.approx(at_ten, rel=1e-5)
    assert run(at(plain), logits, targets, valid)[0] == run(plain, logits, targets, valid)[0]


def test_the_combined_loss_says_whether_it_needs_the_threshold():
    assert not CombinedFocalDiceLoss().needs_threshold
    loss = CombinedFocalDiceLoss(threshold_weights={5.0: 1.2})
    assert loss.needs_threshold
    with pytest.raises(ValueError, match="call it with threshold="):
        loss(jnp.zeros((3, 4)), jnp.zeros((3, 4)))


@pytest.mark.parametrize("given", [{}, ((5.0, 1.0), (5.0, 2.0)), {5.0: -1.0}])
def test_weights_of_the_combined_loss_that_do_not_fit_are_refused(given):
    with pytest.raises(ValueError, match="must be"):
        CombinedFocalDiceLoss(threshold_weights=given)


@pytest.mark.parametrize(
    ("loss", "oracle"),
    [
        (MAELoss(), np.abs),
        (HuberLoss(2.0), lambda e: np.where(np.abs(e) <= 2, e**2 / 2, 2 * (np.abs(e) - 1))),
    ],
)
def test_fault_06_a_pixel_weighs_by_its_own_true_height(loss, oracle):
    rng = np.random.default_rng(7)
    truth = rng.uniform(0, 30, (3, 4, 5, 1)).astype(np.float32)
    guess = truth + rng.normal(0, 3, truth.shape).astype(np.float32)
    valid = rng.random(truth.shape) < 0.6
    sample = np.float32([1.0, 0.0, 2.5])
    factors = np.interp(truth.astype(np.float64), HEIGHTS, WEIGHTS) * sample[:, None, None, None]
    expected = (factors * oracle(guess.astype(np.float64) - truth))[valid].sum() / valid.sum()
    hidden = np.where(valid, truth, np.nan), np.where(valid, guess, np.nan)
    value, slope = run(
        ThresholdWeightedRegressionLoss(loss, HEIGHTS, WEIGHTS), hidden[1], hidden[0], valid, sample
    )
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(slope[~valid], 0)
    assert np.isfinite(slope).all()


def test_the_regression_form_says_what_it_compares_with():
    loss = ThresholdWeightedRegressionLoss(MAELoss(), HEIGHTS, WEIGHTS)
    assert (loss.target, loss.learns, loss.needs_threshold) == ("chm", False, False)
    np.testing.assert_allclose(
        loss.pixel_weight(jnp.asarray([[0.0, 7.5, 40.0]])), [[2.0, 1.2, 0.6]], rtol=1e-6
    )
