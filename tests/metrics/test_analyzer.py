import math
import re

import numpy as np
import pytest
from scipy import stats

from forestgaps_jax.metrics import MetricAnalyzer, ThresholdMetrics, summarize_rows

NAN = math.nan
ROWS = {
    10.0: {"f1": 0.8, "error_rate": 0.3, "loss": 0.2, "mcc": NAN, "recall": NAN, "iou": 0.5, "n_samples": 4},
    5.0: {"f1": 0.7, "error_rate": 0.1, "loss": 0.4, "mcc": 0.2, "recall": NAN, "iou": 0.5, "n_samples": 2},
    20.0: {"f1": 0.9, "error_rate": 0.2, "loss": 0.3, "mcc": 0.1, "recall": NAN, "iou": 0.5, "n_samples": 6},
}


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("f1", (20.0, 0.9)),
        ("error_rate", (5.0, 0.1)),
        ("loss", (10.0, 0.2)),
        ("mcc", (5.0, 0.2)),
        ("iou", (5.0, 0.5)),  # all the same
    ],
)
def test_best_is_the_most_or_for_errors_the_least_and_never_nan(metric, best):
    assert MetricAnalyzer(ROWS).find_best_threshold(metric) == best


def test_best_of_what_is_nowhere_defined_is_nan():
    assert all(map(math.isnan, MetricAnalyzer(ROWS).find_best_threshold("recall")))


@pytest.mark.parametrize("name", ["rmse", "mae", "mse", "focal_loss"])
def test_errors_in_metres_and_losses_are_minimised(name):
    rows = {5.0: {name: 3.0, "glossiness": 3.0}, 10.0: {name: 2.0, "glossiness": 2.0}}
    assert MetricAnalyzer(rows).find_best_threshold(name) == (10.0, 2.0)
    assert MetricAnalyzer(rows).find_best_threshold("glossiness") == (5.0, 3.0)


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(
        ValueError, match=r"metric = 'f_1': must be one of f1, error_rate.*did you mean 'f1'\?"
    ):
        MetricAnalyzer(ROWS).find_best_threshold("f_1")
    with pytest.raises(ValueError, match=r"metric = 'zebra': must be one of [\w, ]*$"):
        MetricAnalyzer(ROWS).find_best_threshold("zebra")


def test_summary_has_means_and_lines_of_scipy():
    rng = np.random.default_rng(0)
    heights = [5.0, 7.5, 15.0, 20.0, 22.0]
    values = {"f1": 0.5 + 0.02 * np.array(heights) + rng.normal(0, 0.02, 5), "error_rate": rng.random(5)}
    rows = {t: {name: value[i] for name, value in values.items()} for i, t in enumerate(heights)}
    summary = MetricAnalyzer(rows).get_summary()
    for name, value in values.items():
        line = stats.linregress(heights, value)
        assert summary["avg_metrics"][name] == pytest.approx(value.mean())
        assert summary["trends"][name]["slope"] == pytest.approx(line.slope)
        assert summary["trends"][name]["correlation"] == pytest.approx(line.rvalue)
        assert summary["best_thresholds"][name] == MetricAnalyzer(rows).find_best_threshold(name)
    assert summary["trends"]["f1"]["direction"] == "increasing"


@pytest.mark.parametrize(
    ("values", "direction"),
    [
        ([0.5, 0.6, 0.7], "increasing"),
        ([7.0, 6.0, 2.0], "decreasing"),
        ([-0.2, -0.3, -0.4], "decreasing"),
        ([0.5, 0.5, 0.5], "stable"),
        ([0.0, 0.0, 0.0], "stable"),
        ([0.500, 0.501, 0.502], "stable"),
        ([0.5, 0.9, 0.52], "stable"),  # up and down again
    ],
)
def test_direction_of_a_trend(values, direction):
    rows = {t: {"f1": value} for t, value in zip((5.0, 10.0, 15.0), values, strict=True)}
    trend = MetricAnalyzer(rows).get_summary()["trends"]["f1"]
    assert trend["direction"] == direction
    assert math.isnan(trend["correlation"]) == (len(set(values)) == 1)


def test_nan_counts_nowhere_in_the_summary():
    summary = MetricAnalyzer(ROWS).get_summary()
    assert summary["avg_metrics"]["mcc"] == pytest.approx(0.15)
    assert summary["trends"]["mcc"]["slope"] == pytest.approx(-0.1 / 15)
    assert math.isnan(summary["avg_metrics"]["recall"])
    assert "recall" not in summary["trends"]
    assert "n_samples" not in summary["best_thresholds"]
    assert summary["avg_metrics"]["n_samples"] == 4.0


def test_one_threshold_has_no_trend():
    summary = MetricAnalyzer({5.0: {"f1": 0.5}}).get_summary()
    assert summary == {"best_thresholds": {"f1": (5.0, 0.5)}, "avg_metrics": {"f1": 0.5}, "trends": {}}


def test_the_same_from_the_object_its_metrics_and_those_of_an_evaluation():
    counts, samples = np.array([[6, 2, 2, 10], [9, 1, 0, 10], [0, 0, 0, 0]]), np.array([1, 1, 0])
    summary = summarize_rows(counts, (5.0, 10.0), samples)
    by_height = ThresholdMetrics([5, 10])
    for height, row in zip((5, 10), counts, strict=False):
        found = np.repeat([1, 1, 0, 0], row)
        truth = np.repeat([1, 0, 1, 0], row)
        by_height.update(found.reshape(1, 4, 5), truth.reshape(1, 4, 5), 0.5, height)
    ways = [by_height, by_height.compute(), summary, summary["threshold_metrics"]]
    assert [MetricAnalyzer(way).find_best_threshold("iou") for way in ways] == [(10.0, 0.9)] * 4


@pytest.mark.parametrize("empty", [{}, {"threshold_metrics": {}}, ThresholdMetrics([5])])
def test_nothing_to_analyse_is_refused(empty):
    with pytest.raises(ValueError, match="no metrics per threshold"):
        MetricAnalyzer(empty)


@pytest.mark.parametrize("wrong", [[0.5], {"f1": 0.5}, None])
def test_other_things_are_refused(wrong, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    says = re.escape(f"metrics of type {type(wrong).__name__}: must be a ThresholdMetrics, ")
    with pytest.raises(TypeError, match=says):
        MetricAnalyzer(wrong)
