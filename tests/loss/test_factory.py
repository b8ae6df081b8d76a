import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Config
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
    create_loss_function,
    create_loss_with_threshold_weights,
)
from forestgaps_jax.settings import Settings

LOSS_TYPES = typing.get_args(Settings.__dataclass_fields__["loss_type"].type)
DEFAULTS = {
    "focal": FocalLoss(alpha=0.25, gamma=2.0),
    "dice": DiceLoss(smooth=1e-6, reduction="batch"),
    "bce": BCELoss(),
    "combined_focal_dice": CombinedFocalDiceLoss(0.5, 2.0, 1e-6, None, focal_alpha=0.5, reduction="batch"),
    "combo": ComboLoss((0.5, 0.3, 0.2), 0.25, 2.0, 1e-6, "batch"),
    "adaptive": AdaptiveLoss((FocalLoss(0.25, 2.0), DiceLoss(1e-6, "batch")), None),
    "mse": MSELoss(),
    "mae": MAELoss(),
    "huber": HuberLoss(1.0),
    "combined_regression": CombinedRegressionLoss(0.5, 0.5),
}
CHANGED = {
    "loss_alpha": 0.3,
    "focal_alpha": 0.8,
    "focal_gamma": 1.5,
    "dice_smooth": 2.0,
    "dice_reduction": "image",
    "combo_weights": (1.0, 2.0, 3.0),
    "use_focal": False,
    "use_bce": True,
    "adaptive_weights": (2.0, 3.0),
    "huber_delta": 4.0,
    "label_smoothing": 0.1,
}
EXPECTED = {
    "focal": FocalLoss(0.8, 1.5, label_smoothing=0.1),
    "dice": DiceLoss(2.0, "image", label_smoothing=0.1),
    "bce": BCELoss(label_smoothing=0.1),
    "combined_focal_dice": CombinedFocalDiceLoss(
        0.3, 1.5, 2.0, focal_alpha=0.8, reduction="image", label_smoothing=0.1
    ),
    "combo": ComboLoss((1.0, 2.0, 3.0), 0.8, 1.5, 2.0, "image", label_smoothing=0.1),
    "adaptive": AdaptiveLoss((DiceLoss(2.0, "image"), BCELoss()), (2.0, 3.0), label_smoothing=0.1),
    "mse": MSELoss(),
    "mae": MAELoss(),
    "huber": HuberLoss(4.0),
    "combined_regression": CombinedRegressionLoss(),
}


def test_every_loss_type_of_the_settings_is_here():
    assert set(LOSS_TYPES) == set(DEFAULTS) == set(EXPECTED)


@pytest.mark.parametrize("loss_type", DEFAULTS)
def test_each_loss_type_has_the_defaults_of_forestgaps(loss_type):
    assert create_loss_function(Config(loss_type=loss_type)) == DEFAULTS[loss_type]


@pytest.mark.parametrize("loss_type", EXPECTED)
def test_each_setting_reaches_the_loss(loss_type):
    assert create_loss_function(Config(loss_type=loss_type, **CHANGED)) == EXPECTED[loss_type]


@pytest.mark.parametrize("loss_type", ["focal", "combined_focal_dice", "combo", "adaptive"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_class_weight_of_zero_is_not_taken_for_left_out(loss_type, alpha):
    loss = create_loss_function(Config(loss_type=loss_type, focal_alpha=alpha))
    settings = dataclasses.asdict(loss.losses[0] if loss_type == "adaptive" else loss)
    assert settings["alpha" if loss_type in ("focal", "adaptive") else "focal_alpha"] == alpha


def test_the_default_configuration_is_the_combined_loss():
    assert create_loss_function(Config()) == CombinedFocalDiceLoss()


def test_adaptive_has_its_parts_in_the_order_of_the_weights():
    config = Config(loss_type="adaptive", use_bce=True, adaptive_weights=(2.0, 3.0, 4.0))
    loss = create_loss_function(config)
    assert [type(part) for part in loss.losses] == [FocalLoss, DiceLoss, BCELoss]
    np.testing.assert_allclose(loss.weights(loss.init()), [2.0, 3.0, 4.0], rtol=1e-6)


def test_adaptive_without_a_part_or_with_weights_of_others_is_refused():
    with pytest.raises(ValueError, match="no part: set use_focal, use_dice or use_bce"):
        create_loss_function(Config(loss_type="adaptive", use_focal=False, use_dice=False))
    with pytest.raises(ValueError, match="1 initial_weights for 2 losses"):
        create_loss_function(Config(loss_type="adaptive", adaptive_weights=(1.0,)))


@pytest.mark.parametrize("loss_type", DEFAULTS)
def test_with_threshold_weights_each_loss_type_trains_compiled(loss_type):
    config = Config(loss_type=loss_type, thresholds=(5.0, 10.0))
    loss = create_loss_with_threshold_weights(config, {5.0: {"gap_ratio": 0.1}, 10.0: {"gap_ratio": 0.3}})
    of_heights = loss_type in ("mse", "mae", "huber", "combined_regression")
    assert type(loss) is (ThresholdWeightedRegressionLoss if of_heights else ThresholdWeightedLoss)
    assert loss.loss == DEFAULTS[loss_type]
    assert dict(zip(loss.thresholds, loss.weights, strict=True)) == pytest.approx({5.0: 1.5, 10.0: 0.5})
    assert (loss.target, loss.learns) == ("chm" if of_heights else "mask", loss_type == "adaptive")

    more = {"threshold": jnp.asarray([5.0, 10.0])} if loss.needs_threshold else {}
    more |= {"params": loss.init()} if loss.learns else {}
    step = jax.jit(lambda loss, x, y, more: jax.grad(loss)(x, y, **more), static_argnums=0)
    slope = step(loss, jnp.zeros((2, 4)), jnp.ones((2, 4)), more)
    assert (slope < 0).all()
    np.testing.assert_array_less(slope[1] if of_heights else -slope[1], 1 if of_heights else -slope[0])
