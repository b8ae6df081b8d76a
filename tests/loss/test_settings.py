"""Settings are checked when the loss is made; the message names what is wrong."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.loss import (
    AdaptiveLoss,
    BCELoss,
    CombinedFocalDiceLoss,
    CombinedRegressionLoss,
    ComboLoss,
    DiceLoss,
    FocalLoss,
    HuberLoss,
)

NAN, INF = float("nan"), float("inf")
FRACTION = ("must be from 0 to 1", [-0.1, 1.5, NAN, INF])
NOT_NEGATIVE = ("must be 0 or more", [-1.0, NAN, INF, -INF])
POSITIVE = ("must be above 0", [0.0, -1.0, NAN, INF])
RATE = ("must be from 0 to below 1", [-0.1, 1.0, NAN, INF])
REDUCTION = ("must be one of 'batch', 'image'", ["mean", "", None])
NUMBERS = [
    (FocalLoss, "alpha", FRACTION),
    (FocalLoss, "gamma", NOT_NEGATIVE),
    (DiceLoss, "smooth", NOT_NEGATIVE),
    (DiceLoss, "reduction", REDUCTION),
    (CombinedFocalDiceLoss, "alpha", FRACTION),
    (CombinedFocalDiceLoss, "gamma", NOT_NEGATIVE),
    (CombinedFocalDiceLoss, "smooth", NOT_NEGATIVE),
    (CombinedFocalDiceLoss, "focal_alpha", FRACTION),
    (CombinedFocalDiceLoss, "reduction", REDUCTION),
    (ComboLoss, "focal_alpha", FRACTION),
    (ComboLoss, "gamma", NOT_NEGATIVE),
    (ComboLoss, "smooth", NOT_NEGATIVE),
    (ComboLoss, "reduction", REDUCTION),
    (BCELoss, "label_smoothing", RATE),
    (AdaptiveLoss, "label_smoothing", RATE),
    (HuberLoss, "delta", POSITIVE),
    (CombinedRegressionLoss, "mse_weight", NOT_NEGATIVE),
    (CombinedRegressionLoss, "mae_weight", NOT_NEGATIVE),
]
REFUSED = [(kind, name, value, says) for kind, name, (says, values) in NUMBERS for value in values]


@pytest.fixture(autouse=True)
def as_a_user_has_it(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.mark.parametrize(("kind", "name", "value", "says"), REFUSED)
def test_a_setting_out_of_range_is_refused_by_its_name(kind, name, value, says):
    with pytest.raises(ValueError, match=re.escape(f"{name} = {value!r}: {says}")):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 1.0), "must be 3 values"),
        ((1.0, 1.0, 1.0, 1.0), "must be 3 values"),
        ((1.0, -0.1, 0.2), "weights = -0.1: must be 0 or more"),
        ((1.0, NAN, 1.0), "weights = nan: must be 0 or more"),
        ((INF, 1.0, 1.0), "weights = inf: must be 0 or more"),
    ],
)
def test_combo_weights_that_are_not_three_of_0_or_more_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        ComboLoss(weights)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (FocalLoss, {"gamma": "2"}, "gamma = '2': must be float, not str"),
        (FocalLoss, {"gamma": None}, "gamma = None: must be float, not NoneType"),
        (FocalLoss, {"alpha": True}, "alpha = True: must be float, not bool"),
        (BCELoss, {"from_logits": "no"}, "from_logits = 'no': must be bool, not str"),
        (ComboLoss, {"weights": 1.0}, "weights = 1.0: must be a list"),
        (HuberLoss, {"delta": np.ones(2)}, "must be float, not ndarray"),
        (AdaptiveLoss, {"max_weight": None}, "max_weight = None: must be float"),
    ],
)
def test_a_setting_of_another_type_is_refused(kind, settings, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        kind(**settings)


@pytest.mark.parametrize(
    "loss",
    [
        FocalLoss(0.0, 0.0),
        FocalLoss(1.0),
        FocalLoss(None),
        DiceLoss(0.0),
        CombinedFocalDiceLoss(0.0, 0.0, 0.0, focal_alpha=None),
        CombinedFocalDiceLoss(1.0),
        ComboLoss((0.0, 0.0, 1.0), None),
        CombinedRegressionLoss(0.0, 0.0),
    ],
    ids=repr,
)
def test_the_ends_of_the_ranges_are_allowed_and_give_finite_losses(loss):
    assert jnp.isfinite(loss(jnp.zeros((2, 3)), jnp.zeros((2, 3))))


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), jnp.float32(0.5)], ids=type)
def test_numbers_of_arrays_become_plain_so_that_losses_stay_hashable(number):
    loss = CombinedFocalDiceLoss(number, number, number, focal_alpha=number)
    assert hash(loss) == hash(CombinedFocalDiceLoss(0.5, 0.5, 0.5, focal_alpha=0.5))
    assert type(loss.gamma) is float


def test_a_list_of_combo_weights_stays_hashable():
    assert hash(ComboLoss([1, 2, 3])) == hash(ComboLoss((1.0, 2.0, 3.0)))
