import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax.loss import DiceLoss, dice_loss
from tests.loss.oracles import FEW, SHAPE, case, dice, finite_differences, masked_case, run

REDUCTIONS = pytest.mark.parametrize("reduction", ["batch", "image"])


@REDUCTIONS
@pytest.mark.parametrize("smooth", [1e-6, 1.0])
def test_value_is_that_of_forestgaps(reduction, smooth):
    logits, targets = case()
    value, _ = run(DiceLoss(smooth, reduction), logits, targets)
    assert value == pytest.approx(dice(logits, targets, smooth, reduction), rel=1e-5)


def test_half_right_by_hand():
    # p = 1/2 on four pixels, two of them gap: 1 - (2*1 + 1) / (2 + 2 + 1)
    value = dice_loss(jnp.zeros((1, 4)), jnp.asarray([[1, 1, 0, 0]]), smooth=1.0)
    assert float(value) == pytest.approx(0.4, rel=1e-6)


def test_batch_pools_pixels_where_image_averages_tiles():
    logits = jnp.asarray([[50.0, 50.0], [50.0, -50.0]])
    targets = jnp.asarray([[1, 1], [0, 0]])
    assert float(dice_loss(logits, targets)) == pytest.approx(1 - 4 / 5, rel=1e-6)
    assert float(dice_loss(logits, targets, reduction="image")) == pytest.approx((0 + 1) / 2, rel=1e-5)


@REDUCTIONS
@pytest.mark.parametrize("smooth", [1e-6, 1.0])
def test_gradient_is_the_slope_of_the_formula(reduction, smooth):
    logits, targets, valid, weight = masked_case(1)
    _, slope = run(DiceLoss(smooth, reduction), logits, targets, valid, weight)
    expected = finite_differences(lambda x: dice(x, targets, smooth, reduction, valid, weight), logits)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-6)


@REDUCTIONS
@FEW
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_pixels_without_data_are_as_if_cropped_away(reduction, seed, share):
    logits, targets, valid, weight = masked_case(seed, share)
    value, slope = run(DiceLoss(1.0, reduction), logits, targets, valid, weight)
    assert value == pytest.approx(dice(logits, targets, 1.0, reduction, valid, weight), rel=1e-4, abs=1e-6)
    np.testing.assert_array_equal(slope[~valid], 0)
    assert np.isfinite(slope).all()


@REDUCTIONS
def test_masking_a_border_equals_cropping_it(reduction):
    logits, targets = case(2)
    valid = np.zeros(SHAPE, bool)
    valid[:, 1:3, :4] = True
    masked, _ = run(DiceLoss(reduction=reduction), np.where(valid, logits, np.nan), targets, valid)
    cropped, _ = run(DiceLoss(reduction=reduction), logits[:, 1:3, :4], targets[:, 1:3, :4])
    assert masked == pytest.approx(cropped, rel=1e-6)


def test_image_leaves_tiles_without_a_valid_pixel_out_of_the_mean():
    logits, targets = case(3)
    valid = np.ones(SHAPE, bool)
    valid[1] = False
    value, slope = run(DiceLoss(reduction="image"), logits, targets, valid)
    alone = [dice(logits[b : b + 1], targets[b : b + 1]) for b in (0, 2)]
    assert value == pytest.approx(np.mean(alone), rel=1e-5)
    np.testing.assert_array_equal(slope[1], 0)


@REDUCTIONS
@pytest.mark.parametrize("smooth", [1e-6, 1.0, 0.0])
def test_no_valid_pixel_gives_zero_with_zero_gradient(reduction, smooth):
    nothing = np.full(SHAPE, np.nan, np.float32)
    value, slope = run(DiceLoss(smooth, reduction), nothing, nothing, np.zeros(SHAPE, bool))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@REDUCTIONS
def test_empty_tiles_met_by_empty_predictions_cost_nothing(reduction):
    value, slope = run(DiceLoss(reduction=reduction), np.full(SHAPE, -40, np.float32), np.zeros(SHAPE))
    assert value == pytest.approx(0, abs=1e-6)
    assert np.isfinite(slope).all()


@REDUCTIONS
def test_empty_tiles_met_by_predicted_gap_cost_all(reduction):
    value, _ = run(DiceLoss(reduction=reduction), np.full(SHAPE, 40, np.float32), np.zeros(SHAPE))
    assert value == pytest.approx(1, abs=1e-6)


@REDUCTIONS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_logits_give_a_finite_value_and_gradient(reduction, dtype, sign):
    targets = case()[1]
    logits = jnp.asarray(sign * 1e4 * (2 * targets - 1), dtype)
    value, slope = run(DiceLoss(reduction=reduction), logits, targets)
    assert value == pytest.approx(0 if sign == 1 else 1, abs=1e-6)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(("reduction", "expected"), [("batch", 1 / 19), ("image", 1 / 12)])
def test_weight_multiplies_sums_of_the_batch_or_losses_of_the_image(reduction, expected):
    # Perfect tile of weight 4: 2*1/2. Tile of weight 1/2 with a false pixel: 2*1/3.
    # batch: 1 - 2 (4*1 + 1/2*1) / (4*2 + 1/2*3); image: (4*0 + 1/2*1/3) / 2 tiles
    logits = jnp.asarray([[50.0, -50.0], [50.0, 50.0]])
    targets = jnp.asarray([[1, 0], [1, 0]])
    value = dice_loss(logits, targets, reduction=reduction, sample_weight=jnp.asarray([4.0, 0.5]))
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int32])
def test_targets_of_any_type_count_alike(dtype):
    logits, targets = case(6)
    assert run(DiceLoss(), logits, targets.astype(dtype))[0] == pytest.approx(dice(logits, targets), rel=1e-5)


@pytest.mark.parametrize("wrong", ["targets", "valid"])
def test_shapes_that_would_broadcast_are_refused_naming_both(wrong):
    logits = jnp.zeros((2, 4, 4, 1))
    given = {"targets": jnp.zeros_like(logits), "valid": jnp.ones(logits.shape, bool)}
    given[wrong] = given[wrong][..., 0]
    with pytest.raises(ValueError, match=rf"{wrong}.*\(2, 4, 4\).*\(2, 4, 4, 1\)"):
        dice_loss(logits, given["targets"], valid=given["valid"])


def test_unknown_reduction_is_refused_before_it_means_something_else(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    with pytest.raises(ValueError, match=r"reduction = 'mean': must be 'batch' or 'image'"):
        dice_loss(jnp.zeros((1, 4)), jnp.zeros((1, 4)), reduction="mean")


def test_compiled_and_not_give_the_same():
    logits, targets, valid, weight = map(jnp.asarray, masked_case(8))
    plain = dice_loss(logits, targets, valid=valid, sample_weight=weight)
    compiled = jax.jit(dice_loss)(logits, targets, valid=valid, sample_weight=weight)
    assert float(plain) == pytest.approx(float(compiled), rel=1e-6)
