import math

import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.metrics import (
    ConfusionCounts,
    confusion_matrix,
    confusion_metrics,
    summarize_counts,
    summarize_rows,
    threshold_index,
)

THRESHOLDS = (5.0, 10.0, 15.0)
ROWS = np.array([[6, 2, 2, 10], [1, 0, 0, 19], [0, 0, 0, 0], [3, 1, 0, 0]])
SAMPLES = np.array([2, 1, 0, 1])


def numbers(metrics):
    """The metrics as a comparable mapping: NaN equals NaN."""
    return {name: "nan" if math.isnan(value) else value for name, value in metrics.items()}


@pytest.fixture(scope="module")
def summary():
    return summarize_rows(ROWS, THRESHOLDS, SAMPLES, loss=0.25)


def test_all_pixels_count_in_the_whole_also_those_of_unlisted_thresholds(summary):
    assert summary["confusion_matrix"] == confusion_matrix(np.array([10, 3, 2, 29]))
    assert summary["iou"] == pytest.approx(10 / 15)
    assert summary["n_pixels"] == 44.0
    assert summary["loss"] == 0.25


def test_whole_and_thresholds_have_every_metric_and_their_extras(summary):
    names = set(confusion_metrics([1, 1, 1, 1]))
    assert set(summary) == names | {"loss", "confusion_matrix", "threshold_metrics"}
    for metrics in summary["threshold_metrics"].values():
        assert set(metrics) == names | {"n_samples", "gap_ratio"}


def test_thresholds_are_floats_and_those_without_samples_are_left_out(summary):
    assert list(summary["threshold_metrics"]) == [5.0, 10.0]
    from_integers = summarize_rows(ROWS, (5, 10, 15), SAMPLES)["threshold_metrics"]
    assert {type(key) for key in from_integers} == {float}


@pytest.mark.parametrize(("threshold", "row", "samples"), [(5.0, [6, 2, 2, 10], 2), (10.0, [1, 0, 0, 19], 1)])
def test_each_threshold_has_the_metrics_of_its_own_row(summary, threshold, row, samples):
    tp, fp, fn, tn = row
    metrics = summary["threshold_metrics"][threshold]
    assert metrics["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert metrics["gap_ratio"] == metrics["gap_proportion"] == pytest.approx((tp + fn) / 20)
    assert metrics["accuracy"] == pytest.approx((tp + tn) / 20)
    assert (metrics["n_samples"], type(metrics["n_samples"])) == (samples, int)


def test_loss_is_nan_unless_given():
    assert math.isnan(summarize_rows(ROWS, THRESHOLDS, SAMPLES)["loss"])


def test_nothing_counted_is_undefined_not_zero():
    summary = summarize_counts(ConfusionCounts.zeros(4), THRESHOLDS)
    assert summary["threshold_metrics"] == {}
    assert math.isnan(summary["iou"])
    assert summary["confusion_matrix"]["total_pixels"] == 0


def test_counts_of_the_device_give_what_their_pixels_give():
    rng = np.random.default_rng(0)
    predicted, truth = rng.random((2, 6, 8, 8, 1)) < 0.5
    heights = np.float32([5, 15, 5, 7, 15, 15])
    counts = ConfusionCounts.zeros(4).update(
        jnp.asarray(predicted), jnp.asarray(truth), group=threshold_index(jnp.asarray(heights), THRESHOLDS)
    )
    summary = summarize_counts(counts, THRESHOLDS, 1.5)
    assert list(summary["threshold_metrics"]) == [5.0, 15.0]
    for threshold, metrics in summary["threshold_metrics"].items():
        p, y = predicted[heights == threshold], truth[heights == threshold]
        assert metrics["precision"] == pytest.approx((p & y).sum() / p.sum())
        assert metrics["n_pixels"] == y.size
        assert metrics["n_samples"] == len(y)
    assert summary["precision"] == pytest.approx((predicted & truth).sum() / predicted.sum())


def test_tiles_without_a_valid_pixel_are_no_samples():
    pixels = jnp.ones((3, 4), bool)
    valid = jnp.asarray([[True] * 4, [False] * 4, [False, True, False, False]])
    counts = ConfusionCounts.zeros(2).update(pixels, pixels, group=jnp.asarray([0, 0, 0]), valid=valid)
    metrics = summarize_counts(counts, (5.0,))["threshold_metrics"][5.0]
    assert (metrics["n_samples"], metrics["n_pixels"]) == (2, 5.0)


def test_whole_without_unlisted_thresholds_is_the_same_as_with_an_empty_last_row():
    with_row = summarize_rows(ROWS[:3], THRESHOLDS[:2], SAMPLES[:3])
    without = summarize_rows(ROWS[:2], THRESHOLDS[:2], SAMPLES[:2])
    assert with_row["confusion_matrix"] == without["confusion_matrix"]
    assert {t: numbers(m) for t, m in with_row["threshold_metrics"].items()} == {
        t: numbers(m) for t, m in without["threshold_metrics"].items()
    }
