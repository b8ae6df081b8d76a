import math

import pytest

from forestgaps_jax.callbacks import Monitor
from forestgaps_jax.metrics import confusion_metrics


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


@pytest.mark.parametrize("name", ["iou", "test_iou", "val_", "", "val_iuo", "val_confusion_matrix"])
def test_a_name_without_phase_or_of_no_metric_is_refused_with_the_list(name):
    with pytest.raises(ValueError, match=r"must be val_ or train_ and one of loss, iou, .*mcc"):
        Monitor(name)


def test_every_metric_of_an_evaluation_can_be_monitored():
    for metric in ("loss", *confusion_metrics([1, 2, 3, 4])):
        assert Monitor(f"train_{metric}").metric == metric
