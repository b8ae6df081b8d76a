import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax.callbacks import Monitor
from forestgaps_jax.metrics import confusion_metrics
from tests.callbacks.driving import scores

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("name", "values", "improved"),
    [
        ("val_iou", [0.2, 0.1, 0.3, 0.3], [True, False, True, False]),
        ("val_loss", [0.2, 0.1, 0.3, math.nan], [True, True, False, False]),
        ("val_loss", [math.inf, 9.0, math.inf, 8.0], [False, True, False, True]),
        ("train_error_rate", [0.2, 0.3, 0.1, 0.1], [True, False, True, False]),
        ("val_mcc", [math.nan, -0.5, -0.1, 0.0], [False, True, True, True]),
    ],
)
def test_fault_02_losses_and_error_rates_are_minimised_the_rest_maximised(name, values, improved):
    monitor = Monitor(name)
    phase, metric = name.split("_", 1)
    assert [monitor.update({f"{phase}_metrics": {metric: v}}) for v in values] == improved


@given(values=VALUES, mode=st.sampled_from(["min", "max"]), min_delta=st.floats(0, 10))
def test_the_best_is_what_no_later_value_beats_by_more_than_the_least_change(values, mode, min_delta):
    monitor, best = Monitor("val_loss", mode, min_delta), None
    for value in values:
        gain = 0 if best is None else (best - value if mode == "min" else value - best)
        better = math.isfinite(value) and (best is None or gain > min_delta)
        best = value if better else best
        assert monitor.update({"val_metrics": {"loss": value}}) == better
        assert monitor.best == best


@pytest.mark.parametrize(("mode", "better"), [("min", 0.1), ("max", 0.3)])
def test_the_mode_may_be_given(mode, better):
    monitor = Monitor("val_gap_proportion", mode)
    assert monitor.mode == mode
    assert [monitor.update({"val_metrics": {"gap_proportion": v}}) for v in (0.2, better, 0.2)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("name", ["mse", "rmse", "mae", "r2"])
def test_metrics_of_a_regression_are_found_where_they_are(name):
    monitor = Monitor(f"val_{name}")
    assert monitor.mode == ("max" if name == "r2" else "min")
    assert monitor.value({"val_metrics": scores(regression={name: 1.5})}) == 1.5
    assert math.isnan(monitor.value({"val_metrics": scores()}))


def test_a_single_threshold_can_be_monitored():
    metrics = scores((6, 2, 2, 10))
    logs = {"val_metrics": metrics, "train_metrics": metrics}
    assert Monitor("val_iou_15m").value(logs) == 21 / (21 + 17 + 17)
    assert Monitor("train_balanced_accuracy_5m").value(logs) == (11 / 18 + 15 / 22) / 2
    assert Monitor("val_error_rate_15m").mode == "min"
    assert math.isnan(Monitor("val_iou_2.5m").value(logs))


def test_without_validation_nothing_improves():
    for name in ("val_iou", "val_iou_5m", "val_rmse"):
        assert not Monitor(name).update({"val_metrics": {}})


@pytest.mark.parametrize(
    "name",
    ["iou", "test_iou", "val_", "", "val_confusion_matrix", "val_iou_m", "val_loss_10m", "val_rmse_5m"],
)
def test_a_name_without_phase_or_of_no_metric_is_refused_with_the_list(name):
    with pytest.raises(ValueError, match=r"must be val_ or train_ and one of loss, iou, .*mcc.*rmse"):
        Monitor(name)


def test_a_misspelt_metric_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'val_iuo': did you mean 'val_iou'"):
        Monitor("val_iuo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "least"}, "mode = 'least': must be 'auto', 'min' or 'max'"),
        ({"min_delta": -0.1}, "min_delta = -0.1: must be 0 or more"),
        ({"min_delta": math.nan}, "min_delta = nan: must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Monitor("val_iou", **arguments)


def test_what_will_never_be_measured_is_refused(config):
    Monitor("val_iou_15m").check(config)
    Monitor("train_loss").check(config, validated=False)
    with pytest.raises(
        ValueError, match=r"val_loss needs.*data\.val \(on the command line --val-fraction.*'train_loss'"
    ):
        Monitor("val_loss").check(config, validated=False)
    with pytest.raises(ValueError, match=r"val_pr_auc_5m needs validation data.*'train_iou'"):
        Monitor("val_pr_auc_5m").check(config, validated=False)
    with pytest.raises(ValueError, match="val_iou_10m: 10 m is not in thresholds = 5, 15"):
        Monitor("val_iou_10m").check(config)


@pytest.mark.parametrize("heights", [True, False, None])
@pytest.mark.parametrize(
    ("name", "of_heights", "of_gaps", "instead"),
    [
        ("val_iou", True, True, ""),
        ("train_loss", True, True, ""),
        ("val_pr_auc", False, True, "'val_rmse' or 'val_iou'"),
        ("val_pr_auc_15m", False, True, "'val_rmse' or 'val_iou'"),
        ("train_pr_auc", False, False, "'train_iou'"),
        *[(f"val_{name}", True, False, "'val_iou' or 'val_loss'") for name in ("mse", "rmse", "mae", "r2")],
        ("train_rmse", True, False, "'train_iou' or 'train_loss'"),
    ],
)
def test_what_such_a_network_is_never_measured_by_is_refused(
    config, name, of_heights, of_gaps, instead, heights
):
    measured = {True: of_heights, False: of_gaps, None: of_heights or of_gaps}[heights]
    if measured:
        Monitor(name).check(config, heights=heights)
    else:
        with pytest.raises(ValueError, match=f"{name}.*monitor .*{instead}"):
            Monitor(name).check(config, heights=heights)


def test_every_metric_of_an_evaluation_can_be_monitored():
    for metric in ("loss", *confusion_metrics([1, 2, 3, 4])):
        assert Monitor(f"train_{metric}").metric == metric
