import pytest

from forestgaps_jax import Config
from forestgaps_jax.loss import BCELoss, CombinedFocalDiceLoss, DiceLoss, FocalLoss, create_loss_function

CHANGED = {
    "loss_alpha": 0.3,
    "focal_alpha": 0.8,
    "focal_gamma": 1.5,
    "dice_smooth": 2.0,
    "dice_reduction": "image",
}


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("focal", FocalLoss(alpha=0.25, gamma=2.0)),
        ("dice", DiceLoss(smooth=1e-6, reduction="batch")),
        ("bce", BCELoss()),
        (
            "combined_focal_dice",
            CombinedFocalDiceLoss(alpha=0.5, gamma=2.0, focal_alpha=0.5, smooth=1e-6, reduction="batch"),
        ),
    ],
)
def test_each_loss_type_has_the_defaults_of_forestgaps(loss_type, expected):
    assert create_loss_function(Config(loss_type=loss_type)) == expected


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("focal", FocalLoss(alpha=0.8, gamma=1.5)),
        ("dice", DiceLoss(smooth=2.0, reduction="image")),
        ("bce", BCELoss()),
        (
            "combined_focal_dice",
            CombinedFocalDiceLoss(alpha=0.3, gamma=1.5, focal_alpha=0.8, smooth=2.0, reduction="image"),
        ),
    ],
)
def test_each_setting_reaches_the_loss(loss_type, expected):
    assert create_loss_function(Config(loss_type=loss_type, **CHANGED)) == expected


@pytest.mark.parametrize("loss_type", ["focal", "combined_focal_dice"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_class_weight_of_zero_is_not_taken_for_left_out(loss_type, alpha):
    loss = create_loss_function(Config(loss_type=loss_type, focal_alpha=alpha))
    assert (loss.alpha if loss_type == "focal" else loss.focal_alpha) == alpha


def test_the_default_configuration_is_the_combined_loss():
    assert create_loss_function(Config()) == CombinedFocalDiceLoss()
