"""What holds for every loss, whatever its numbers."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forestgaps_jax.loss import (
    AdaptiveLoss,
    BCELoss,
    CombinedFocalDiceLoss,
    CombinedRegressionLoss,
    ComboLoss,
    DiceLoss,
    FocalLoss,
    HuberLoss,
    MAELoss,
    MSELoss,
    ThresholdWeightedLoss,
    ThresholdWeightedRegressionLoss,
)
from tests.loss.oracles import FEW, SHAPE, case, dice, masked_case, sigmoid


@dataclass(frozen=True)
class At:
    """A loss that weighs by threshold, at one for all; hashable, as the others are."""

    loss: ThresholdWeightedLoss
    threshold: float

    def __call__(self, *args, **masks):
        return self.loss(*args, threshold=self.threshold, **masks)


GAP = [
    FocalLoss(),
    FocalLoss(None, 0.5),
    BCELoss(label_smoothing=0.1),
    DiceLoss(),
    DiceLoss(reduction="image"),
    CombinedFocalDiceLoss(),
    ComboLoss(),
    AdaptiveLoss(),
    At(ThresholdWeightedLoss(CombinedFocalDiceLoss(label_smoothing=0.1), (5.0, 15.0), (1.5, 0.5)), 7.0),
]
HEIGHT = [
    MSELoss(),
    MAELoss(),
    HuberLoss(2.0),
    CombinedRegressionLoss(),
    ThresholdWeightedRegressionLoss(HuberLoss(), (5.0, 15.0), (1.5, 0.5)),
]
EVERY = pytest.mark.parametrize("loss", GAP + HEIGHT, ids=repr)
SEEDS = st.integers(0, 2**32 - 1)


@functools.partial(jax.jit, static_argnums=0)
def value_and_slope(loss, outputs, targets, valid, weight):
    return jax.value_and_grad(lambda x: loss(x, targets, valid=valid, sample_weight=weight))(outputs)


@EVERY
@FEW
@given(SEEDS, st.sampled_from([0.0, 255.0, -9999.0, np.inf, np.nan]))
def test_pixels_without_data_never_matter(loss, seed, filling):
    outputs, targets, valid, weight = masked_case(seed)
    value, slope = value_and_slope(loss, outputs, targets, valid, weight)
    filled = (np.where(valid, a, np.float32(filling)) for a in (outputs, targets))
    value_filled, slope_filled = value_and_slope(loss, *filled, valid, weight)
    assert np.isfinite(value)
    assert value == value_filled
    np.testing.assert_array_equal(slope, slope_filled)
    np.testing.assert_array_equal(np.asarray(slope)[~valid], 0)


@EVERY
@FEW
@given(SEEDS, st.permutations(range(SHAPE[0])))
def test_the_order_of_samples_does_not_matter(loss, seed, order):
    order = np.asarray(order)
    given = masked_case(seed)
    value, slope = value_and_slope(loss, *given)
    value_permuted, slope_permuted = value_and_slope(loss, *(a[order] for a in given))
    assert float(value_permuted) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(slope_permuted, slope[order], rtol=1e-4, atol=1e-6)


CORNERS = st.tuples(*(st.integers(0, whole - part) for whole, part in zip(SHAPE, (2, 2, 4), strict=False)))


@EVERY
@FEW
@given(SEEDS, CORNERS)
def test_marking_pixels_invalid_is_cropping_them_off(loss, seed, corner):
    outputs, targets, valid, weight = masked_case(seed)
    block = tuple(slice(first, first + size) for first, size in zip(corner, (2, 2, 4), strict=True))
    inside = np.zeros(SHAPE, bool)
    inside[block] = True
    value, slope = value_and_slope(loss, outputs, targets, valid & inside, weight)
    cropped = (a[block] for a in (outputs, targets, valid))
    value_cropped, slope_cropped = value_and_slope(loss, *cropped, weight[block[0]])
    assert float(value) == pytest.approx(float(value_cropped), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(slope[block], slope_cropped, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(slope)[~inside], 0)


@pytest.mark.parametrize(
    "loss",
    [FocalLoss(), BCELoss(), DiceLoss(reduction="image"), ComboLoss(reduction="image"), *HEIGHT],
    ids=repr,
)
@FEW
@given(SEEDS, arrays(np.float32, (2, SHAPE[0]), elements=st.floats(0, 8, width=32)))
def test_the_loss_is_linear_in_the_sample_weights(loss, seed, weights):
    outputs, targets, valid, _ = masked_case(seed)
    first, second = (value_and_slope(loss, outputs, targets, valid, w) for w in weights)
    both = value_and_slope(loss, outputs, targets, valid, weights[0] + 2 * weights[1])
    np.testing.assert_allclose(both[0], first[0] + 2 * second[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(both[1], first[1] + 2 * second[1], rtol=1e-4, atol=1e-5)


@FEW
@given(SEEDS, st.floats(0.125, 8, width=32))
def test_pooled_dice_knows_only_the_proportions_of_the_sample_weights(seed, factor):
    outputs, targets, valid, weight = masked_case(seed)
    value, _ = value_and_slope(DiceLoss(1e-6), outputs, targets, valid, weight)
    scaled, _ = value_and_slope(DiceLoss(1e-6), outputs, targets, valid, np.float32(factor) * weight)
    assert float(scaled) == pytest.approx(float(value), rel=1e-4, abs=1e-6)


# Where float32 ends, is coarse, or flushes to 0; where exp overflows and the sigmoid is 0 or 1.
EDGES = [
    0.0,
    -0.0,
    1e-45,
    1e-39,
    1.2e-38,
    1e-8,
    16.0,
    17.0,
    50.0,
    88.0,
    89.0,
    104.0,
    1e19,
    1e30,
    1e38,
    3.4e38,
]
LARGEST = float(np.finfo(np.float32).max)
ANY_FLOAT32 = st.one_of(
    st.sampled_from([*EDGES, *(-x for x in EDGES), LARGEST, -LARGEST]).map(np.float32).map(float),
    st.floats(-LARGEST, LARGEST, width=32),
    st.floats(-120, 120, width=32),
)


def value_and_slope_of_few(loss, outputs, dtype, seed, share=1.0):
    """Of a batch in which each of the few outputs meets both labels; the shapes are those compiled above."""
    _, targets = case(seed)
    weight = np.ones(SHAPE[0], np.float32)
    valid = np.random.default_rng(seed).random(SHAPE) < share
    outputs = jnp.asarray(np.resize(outputs, SHAPE), dtype)
    value, slope = value_and_slope(loss, outputs, targets, valid, weight)
    return float(value), np.asarray(slope, np.float32)


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        *((loss, jnp.float32) for loss in GAP),
        *((loss, jnp.float32) for loss in (FocalLoss(None, 9.0), DiceLoss(0.0), DiceLoss(0.0, "image"))),
        *((loss, dtype) for loss in (ComboLoss(), AdaptiveLoss()) for dtype in (jnp.bfloat16, jnp.float16)),
    ],
    ids=repr,
)
@settings(FEW, max_examples=40)
@given(st.lists(ANY_FLOAT32, min_size=4, max_size=4), st.sampled_from([0.02, 0.3, 1.0]), SEEDS)
@example([-LARGEST, LARGEST] * 2, 0.02, 3)  # one valid pixel: nothing makes its slope smaller
@example([-50.0] * 4, 0.02, 0)  # no gap, and next to none predicted
def test_fault_05_value_and_gradient_are_finite_for_any_finite_logit(loss, dtype, logits, share, seed):
    limit = float(jnp.finfo(dtype).max)
    value, slope = value_and_slope_of_few(loss, np.clip(logits, -limit, limit), dtype, seed, share)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@settings(FEW, max_examples=40)
@given(ANY_FLOAT32, st.booleans(), st.sampled_from([(None, 0.0), (0.25, 2.0), (0.7, 5.0)]))
@example(LARGEST, False, (0.25, 2.0))
@example(-LARGEST, True, (None, 0.0))
def test_fault_05_gradient_of_any_logit_is_that_of_the_formula(logit, gap, options):
    alpha, gamma = options
    loss = FocalLoss(alpha, gamma)
    _, slope = value_and_slope(loss, np.full((1, 1), logit, np.float32), np.full((1, 1), gap), None, None)
    weight = 1.0 if alpha is None else alpha if gap else 1 - alpha
    x = float(np.float32(logit)) if gap else -float(np.float32(logit))  # as if it were a gap
    p, q, log_p = sigmoid(x), sigmoid(-x), -np.logaddexp(0.0, -x)
    expected = weight * q**gamma * (gamma * p * log_p - q)
    assert slope.item() == pytest.approx(expected if gap else -expected, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("loss", HEIGHT, ids=repr)
@FEW
@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=4, max_size=4), SEEDS)
@example([0.0, -0.0, 1e-45, -1e-45], 0)
def test_gradient_is_finite_for_any_height_whose_square_is_a_number(loss, heights, seed):
    value, slope = value_and_slope_of_few(loss, heights, jnp.float32, seed)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@FEW
@given(arrays(np.float32, 4, elements=st.floats(0, 1, width=32)), SEEDS)
def test_gradient_is_finite_for_any_probability(dtype, p, seed):
    value, slope = value_and_slope_of_few(CombinedFocalDiceLoss(from_logits=False), p, dtype, seed)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


# What holds of Dice when the same pixels are batched otherwise.


@FEW
@given(SEEDS)
def test_fault_08_pooled_dice_does_not_care_which_tile_a_pixel_lies_in(seed):
    outputs, targets, valid, _ = masked_case(seed)
    shuffle = np.random.default_rng(seed).permutation(outputs.size)
    regrouped = [a.reshape(-1)[shuffle].reshape(10, 6) for a in (outputs, targets, valid)]
    value, _ = value_and_slope(DiceLoss(), outputs, targets, valid, None)
    again, _ = value_and_slope(DiceLoss(), *regrouped, None)
    assert float(again) == pytest.approx(float(value), rel=1e-5)
    assert float(value) == pytest.approx(dice(outputs, targets, valid=valid), rel=1e-5)


@FEW
@given(SEEDS)
def test_fault_08_dice_of_a_union_is_a_weighted_mean_of_its_batches(seed):
    outputs, targets, valid, _ = masked_case(seed)
    batches = [[a[part] for a in (outputs, targets, valid)] for part in (slice(0, 1), slice(1, 3))]

    def of(reduction, given):
        return float(value_and_slope(DiceLoss(reduction=reduction), *given, None)[0])

    # Per image: by the number of tiles. Pooled: by the sum of predicted and true gap.
    sums = [(1 / (1 + np.exp(-x.astype(np.float64))) + y)[v].sum() for x, y, v in batches]
    for reduction, size in (("image", [1, 2]), ("batch", sums)):
        union = of(reduction, (outputs, targets, valid))
        parts = [of(reduction, batch) for batch in batches]
        assert union == pytest.approx(np.average(parts, weights=size), rel=1e-5)


def test_fault_08_the_plain_mean_of_pooled_dice_is_not_that_of_the_union():
    full, empty = [np.full((1, 4), x, np.float32) for x in (40.0, -40.0)], np.zeros((1, 4), np.float32)
    both = np.concatenate([full[0], full[0]]), np.concatenate([empty + 1, empty])
    union = float(value_and_slope(DiceLoss(), *both, None, None)[0])
    parts = [float(value_and_slope(DiceLoss(), full[0], y, None, None)[0]) for y in (empty + 1, empty)]
    assert parts == pytest.approx([0, 1], abs=1e-6)
    assert union == pytest.approx(1 - 8 / 12, rel=1e-5)
