import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax.loss import BCELoss, FocalLoss, bce_loss, focal_loss
from tests.loss.oracles import FEW, SHAPE, case, finite_differences, focal, masked_case, run

SETTINGS = [(0.25, 2.0), (0.5, 0.5), (0.9, 0.0), (None, 2.0)]


@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_value_is_that_of_forestgaps(alpha, gamma):
    logits, targets = case()
    value, _ = run(FocalLoss(alpha, gamma), logits, targets)
    assert value == pytest.approx(focal(logits, targets, alpha, gamma), rel=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_value_is_that_of_optax(alpha, gamma):
    logits, targets = case(1)
    expected = optax.losses.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma).mean()
    value, _ = run(FocalLoss(alpha, gamma), logits, targets)
    assert value == pytest.approx(float(expected), rel=1e-5)


def test_bce_is_that_of_optax():
    logits, targets = case(2)
    expected = optax.sigmoid_binary_cross_entropy(logits, targets).mean()
    assert run(BCELoss(), logits, targets)[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [
        (0.0, 1.0, 0.25 * 0.25 * np.log(2)),
        (0.0, 0.0, 0.75 * 0.25 * np.log(2)),
        (np.log(3), 1.0, 0.25 * 0.25**2 * np.log(4 / 3)),  # p = 3/4
        (np.log(3), 0.0, 0.75 * 0.75**2 * np.log(4)),
    ],
)
def test_one_pixel_by_hand_with_the_default_settings(logit, target, expected):
    value = focal_loss(jnp.full((1, 1), logit), jnp.full((1, 1), target))
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), SETTINGS)
def test_gradient_is_the_slope_of_the_formula(alpha, gamma):
    logits, targets, valid, weight = masked_case(3)
    _, slope = run(FocalLoss(alpha, gamma), logits, targets, valid, weight)
    expected = finite_differences(lambda x: focal(x, targets, alpha, gamma, valid, weight), logits)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("height", [40.0, 100.0, 1e4])
def test_most_wrong_pixels_keep_a_finite_value_and_their_full_gradient(height, gamma, dtype):
    logits = jnp.asarray([[-height, height]], dtype)
    value, slope = run(FocalLoss(0.25, gamma), logits, jnp.asarray([[1.0, 0.0]]))
    assert value == pytest.approx(float(logits[0, 1]) * (0.25 + 0.75) / 2, rel=1e-3)
    np.testing.assert_allclose(slope, [[-0.25 / 2, 0.75 / 2]], rtol=1e-2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_right_and_certain_pixels_cost_nothing_and_pull_nowhere(gamma):
    value, slope = run(FocalLoss(0.25, gamma), np.float32([[1e4, -1e4]]), np.float32([[1, 0]]))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@FEW
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_pixels_without_data_are_as_if_cropped_away(seed, share):
    logits, targets, valid, weight = masked_case(seed, share)
    value, slope = run(FocalLoss(), logits, targets, valid, weight)
    assert value == pytest.approx(focal(logits, targets, valid=valid, weight=weight), rel=1e-4, abs=1e-7)
    np.testing.assert_array_equal(slope[~valid], 0)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("loss", [FocalLoss(), BCELoss()])
def test_masking_a_border_equals_cropping_it(loss):
    logits, targets = case(4)
    valid = np.zeros(SHAPE, bool)
    valid[:, 1:3, :4] = True
    masked, slope = run(loss, np.where(valid, logits, np.nan), targets, valid)
    cropped, cropped_slope = run(loss, logits[:, 1:3, :4], targets[:, 1:3, :4])
    assert masked == pytest.approx(cropped, rel=1e-6)
    np.testing.assert_allclose(slope[:, 1:3, :4], cropped_slope, rtol=1e-5)


@pytest.mark.parametrize("loss", [FocalLoss(), BCELoss()])
def test_no_valid_pixel_gives_zero_with_zero_gradient(loss):
    nothing = np.full(SHAPE, np.nan, np.float32)
    value, slope = run(loss, nothing, nothing, np.zeros(SHAPE, bool))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_weight_multiplies_each_samples_terms_not_the_mean():
    logits, targets = case(5)
    weight = np.float32([0.0, 1.0, 5.0])
    value, slope = run(BCELoss(), logits, targets, weight=weight)
    of_sample = [focal(logits[b : b + 1], targets[b : b + 1], None, 0.0) for b in range(3)]
    assert value == pytest.approx((of_sample[1] + 5 * of_sample[2]) / 3, rel=1e-5)
    np.testing.assert_array_equal(slope[0], 0)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float16])
def test_targets_of_any_type_count_alike(dtype):
    logits, targets = case(6)
    value, _ = run(FocalLoss(), logits, targets.astype(dtype))
    assert value == pytest.approx(focal(logits, targets), rel=1e-5)


@pytest.mark.parametrize("loss", [focal_loss, bce_loss])
def test_result_is_a_float32_scalar_also_of_half_precision(loss):
    logits, targets = case(7)
    result = loss(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(targets, jnp.bfloat16))
    assert (result.shape, result.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("loss", [focal_loss, bce_loss])
@pytest.mark.parametrize("wrong", ["targets", "valid"])
def test_shapes_that_would_broadcast_are_refused_naming_both(loss, wrong):
    logits = jnp.zeros((2, 4, 4, 1))
    given = {"targets": jnp.zeros_like(logits), "valid": jnp.ones(logits.shape, bool)}
    given[wrong] = given[wrong][..., 0]
    with pytest.raises(ValueError, match=rf"{wrong}.*\(2, 4, 4\).*\(2, 4, 4, 1\)"):
        loss(logits, given["targets"], valid=given["valid"])


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1)])
def test_weights_that_are_not_one_a_sample_are_refused(shape, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    logits = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"sample_weight.*\(2,\)"):
        focal_loss(logits, logits, sample_weight=jnp.ones(shape))


def test_compiled_and_not_give_the_same():
    logits, targets, valid, weight = map(jnp.asarray, masked_case(8))
    plain = focal_loss(logits, targets, valid=valid, sample_weight=weight)
    compiled = jax.jit(focal_loss)(logits, targets, valid=valid, sample_weight=weight)
    assert float(plain) == pytest.approx(float(compiled), rel=1e-6)
