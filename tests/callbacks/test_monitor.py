import math

import pytest

from forestgaps_jax.callbacks import Monitor


@pytest.mark.parametrize(
    ("name", "values", "improved"),
    [
        ("val_iou", [0.2, 0.1, 0.3, 0.3], [True, False, True, False]),
        ("val_loss", [0.2, 0.1, 0.3, math.nan], [True, True, False, False]),
        ("train_error_rate", [0.2, 0.3, 0.1, 0.1], [True, False, True, False]),
        ("val_mcc", [math.nan, -0.5, -0.1, 0.0], [False, True, True, True]),
    ],
)
def test_losses_and_error_rates_are_minimised_the_rest_maximised(name, values, improved):
    monitor = Monitor(name)
    phase, metric = name.split("_", 1)
    assert [monitor.update({f"{phase}_metrics": {metric: v}}) for v in values] == improved


def test_without_validation_nothing_improves():
    assert not Monitor("val_iou").update({"val_metrics": {}})


@pytest.mark.parametrize("name", ["iou", "test_iou", "val_", ""])
def test_a_name_without_phase_or_metric_is_refused(name):
    with pytest.raises(ValueError, match="must be val_ or train_"):
        Monitor(name)


def test_an_unknown_metric_is_an_error_that_lists_them():
    with pytest.raises(KeyError, match=r"val_iuo.*f1, iou"):
        Monitor("val_iuo").update({"val_metrics": {"iou": 0.5, "f1": 0.6, "confusion_matrix": {}}})
