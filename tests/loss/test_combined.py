import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax.loss import (
    BCELoss,
    CombinedFocalDiceLoss,
    ComboLoss,
    DiceLoss,
    FocalLoss,
    bce_loss,
    dice_loss,
    focal_dice_loss,
    focal_loss,
)
from tests.loss.oracles import FEW, SHAPE, case, combined, dice, finite_differences, focal, masked_case, run

# Each class with settings that are not its defaults, and the function that it stands for.
PAIRS = [
    (FocalLoss(0.7, 1.0), functools.partial(focal_loss, alpha=0.7, gamma=1.0)),
    (DiceLoss(1.0, "image"), functools.partial(dice_loss, smooth=1.0, reduction="image")),
    (BCELoss(), bce_loss),
    (
        CombinedFocalDiceLoss(0.3, 1.0, 1.0, focal_alpha=0.7, reduction="image"),
        functools.partial(
            focal_dice_loss, alpha=0.3, gamma=1.0, focal_alpha=0.7, smooth=1.0, reduction="image"
        ),
    ),
    (FocalLoss(), focal_loss),
    (DiceLoss(), dice_loss),
    (CombinedFocalDiceLoss(), focal_dice_loss),
]
CLASSES = pytest.mark.parametrize(("loss", "function"), PAIRS, ids=[repr(loss) for loss, _ in PAIRS])


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.8, "focal_alpha": 0.25}, {"gamma": 0.5, "smooth": 1.0, "reduction": "image"}],
    ids=str,
)
def test_value_and_gradient_are_those_of_forestgaps(options):
    logits, targets, valid, weight = masked_case(0)
    value, slope = run(CombinedFocalDiceLoss(**options), logits, targets, valid, weight)

    def expected(x):
        return combined(x, targets, **options, valid=valid, weight=weight)

    assert value == pytest.approx(expected(logits), rel=1e-5)
    np.testing.assert_allclose(slope, finite_differences(expected, logits), rtol=1e-3, atol=1e-6)


def test_fault_05_alpha_mixes_and_focal_alpha_weighs_the_class():
    logits, targets = case(1)
    only_focal, _ = run(CombinedFocalDiceLoss(alpha=1.0, focal_alpha=0.9), logits, targets)
    only_dice, _ = run(CombinedFocalDiceLoss(alpha=0.0, focal_alpha=0.9), logits, targets)
    assert only_focal == pytest.approx(focal(logits, targets, 0.9), rel=1e-5)
    assert only_dice == pytest.approx(dice(logits, targets), rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_fault_05_most_wrong_pixels_keep_a_live_gradient_of_the_right_sign(gamma, dtype):
    targets = case(2)[1]
    logits = jnp.asarray(1e4 * (1 - 2 * targets), dtype)
    value, slope = run(CombinedFocalDiceLoss(gamma=gamma), logits, targets)
    assert np.isfinite(value)
    expected = 0.25 * (1 - 2 * targets) / targets.size  # the focal part: half of half
    np.testing.assert_allclose(slope, expected, rtol=1e-2)


@pytest.mark.parametrize("reduction", ["batch", "image"])
@FEW
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_pixels_without_data_are_as_if_cropped_away(reduction, seed, share):
    logits, targets, valid, weight = masked_case(seed, share)
    loss = CombinedFocalDiceLoss(smooth=1.0, reduction=reduction)
    value, slope = run(loss, logits, targets, valid, weight)
    expected = combined(logits, targets, smooth=1.0, reduction=reduction, valid=valid, weight=weight)
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-6)
    np.testing.assert_array_equal(slope[~valid], 0)


@CLASSES
def test_class_equals_its_function_with_mask_and_weights(loss, function):
    logits, targets, valid, weight = map(jnp.asarray, masked_case(3))
    expected = function(logits, targets, valid=valid, sample_weight=weight)
    assert run(loss, logits, targets, valid, weight)[0] == pytest.approx(float(expected), rel=1e-6)


@CLASSES
def test_class_is_frozen_hashable_and_equal_when_its_settings_are(loss, function):
    twin = copy.deepcopy(loss)
    assert twin == loss
    assert hash(twin) == hash(loss)
    assert repr(twin) == repr(loss)
    for name in [*dataclasses.asdict(loss), "anything"]:
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            setattr(loss, name, 0.5)


def test_losses_of_other_settings_or_kinds_differ():
    assert len({loss for loss, _ in PAIRS}) == len(PAIRS)


@CLASSES
def test_class_serves_as_static_argument_without_compiling_twice(loss, function):
    compilations = 0

    def step(loss, logits, targets):
        nonlocal compilations
        compilations += 1
        return loss(logits, targets)

    logits, targets = map(jnp.asarray, case(4))
    compiled = jax.jit(step, static_argnums=0)
    values = {float(compiled(each, logits, targets)) for each in (loss, copy.deepcopy(loss))}
    assert len(values) == compilations == 1
    assert values.pop() == pytest.approx(float(function(logits, targets)), rel=1e-6)


@CLASSES
def test_no_valid_pixel_gives_zero_with_zero_gradient(loss, function):
    nothing = np.full(SHAPE, np.nan, np.float32)
    value, slope = run(loss, nothing, nothing, np.zeros(SHAPE, bool), np.ones(3, np.float32))
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


def test_batches_under_vmap_have_each_their_own_loss():
    logits, targets = (np.stack([a, a[::-1] ** 2]) for a in case(5))
    both = jax.vmap(CombinedFocalDiceLoss())(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(
        both, [combined(x, y) for x, y in zip(logits, targets, strict=True)], rtol=1e-5
    )


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1.0, 0.0, 2.0)])
def test_combo_is_bce_dice_and_focal_in_its_shares(weights):
    logits, targets, valid, weight = masked_case(6)
    value, slope = run(ComboLoss(weights, 0.7, 1.0, 1.0, "image"), logits, targets, valid, weight)
    masks = {"valid": valid, "weight": weight}

    def expected(x):
        bce, overlap = focal(x, targets, None, 0.0, **masks), dice(x, targets, 1.0, "image", **masks)
        return np.dot(weights, [bce, overlap, focal(x, targets, 0.7, 1.0, **masks)])

    assert value == pytest.approx(expected(logits), rel=1e-5)
    np.testing.assert_allclose(slope, finite_differences(expected, logits), rtol=1e-3, atol=1e-6)


def test_settings_by_position_are_in_the_order_of_forestgaps():
    loss = CombinedFocalDiceLoss(0.3, 1.0, 2.0, {5.0: 1.5})
    named = CombinedFocalDiceLoss(alpha=0.3, gamma=1.0, smooth=2.0, threshold_weights={5.0: 1.5})
    assert loss == named
    assert (loss.focal_alpha, loss.reduction) == (0.5, "batch")
    with pytest.raises(TypeError, match="positional"):
        CombinedFocalDiceLoss(0.3, 1.0, 2.0, None, 0.7)
