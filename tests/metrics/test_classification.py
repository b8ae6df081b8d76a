import math
import re
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.metrics import (
    ConfusionCounts,
    SegmentationMetrics,
    ThresholdMetrics,
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


# ThresholdMetrics


def tiles(seed=0, count=6):
    rng = np.random.default_rng(seed)
    truth = rng.random((count, 8, 8)) < 0.4
    return np.clip(rng.normal(0.3 + 0.4 * truth, 0.3), 0, 1).astype(np.float32), truth.astype(np.float32)


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_each_height_has_what_its_tiles_alone_give(to):
    predictions, targets = tiles()
    valid = np.random.default_rng(1).random(targets.shape) < 0.8
    heights = np.float32([15, 5, 15.0004, 15, 5, 15])
    metrics = ThresholdMetrics([5, 10, 15])
    for part in (slice(0, 4), slice(4, 6)):
        metrics.update(*map(to, (predictions[part], targets[part])), 0.6, to(heights[part]), to(valid[part]))
    rows, matrices = metrics.compute(), metrics.compute_confusion_matrix()
    assert list(rows) == list(matrices) == [5.0, 15.0]
    for height, row in rows.items():
        mine = abs(heights - height) < 1
        alone = SegmentationMetrics(0.6)
        alone.update(predictions[mine], targets[mine], valid[mine])
        assert matrices[height] == alone.compute_confusion_matrix()
        expected = confusion_metrics([matrices[height][name] for name in ("tp", "fp", "fn", "tn")])
        expected |= {"n_samples": mine.sum(), "gap_ratio": targets[mine][valid[mine]].mean()}
        assert row == pytest.approx(expected)


@pytest.mark.parametrize("value", [10, 10.0, np.float32(10.0005), [10] * 6, np.full((6, 1), 10)])
def test_one_height_for_all_or_one_a_sample(value):
    metrics = ThresholdMetrics([5, 10])
    metrics.update(*tiles(), 0.5, threshold_value=value)
    assert {height: row["n_samples"] for height, row in metrics.compute().items()} == {10.0: 6}
    metrics.reset()
    assert metrics.compute() == {}


def test_logits_have_their_option():
    predictions, targets = tiles()
    logits = np.log(predictions + 1e-6) - np.log1p(1e-6 - predictions)
    found = []
    for from_logits, values in ((True, logits), (False, predictions)):
        metrics = ThresholdMetrics([5], from_logits)
        metrics.update(values, targets, 0.4, 5)
        found.append(metrics.compute_confusion_matrix())
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="from_logits=True"):
        metrics.update(logits, targets, 0.5, 5)


def test_a_height_that_is_not_listed_is_refused_naming_it_and_the_list():
    metrics = ThresholdMetrics([5, 10])
    says = re.escape("threshold_value = 7.5: must be one of [5.0, 10.0] m")
    with pytest.raises(ValueError, match=says):
        metrics.update(*tiles(), 0.5, [5, 10, 7.5, 5, 5, 5])
    assert metrics.compute() == {}


def test_a_height_of_the_device_that_is_not_listed_is_refused_at_the_fetch():
    metrics = ThresholdMetrics([5, 10])
    metrics.update(*tiles(), 0.5, jnp.asarray([5, 10, 7.5, 5, 5, 5]))
    for fetch in (metrics.compute, metrics.compute_confusion_matrix):
        with pytest.raises(ValueError, match=r"some sample: must be one of \[5.0, 10.0\] m"):
            fetch()


def test_heights_that_are_missing_or_do_not_fit_are_refused():
    metrics = ThresholdMetrics([5, 10])
    with pytest.raises(ValueError, match=r"threshold_value is missing: must be one of \[5.0, 10.0\] m"):
        metrics.update(*tiles(), 0.5)
    with pytest.raises(ValueError, match=r"threshold_value has shape \(2,\): must be one number or \(6,\)"):
        metrics.update(*tiles(), 0.5, [5, 10])


def test_the_height_in_the_place_of_the_cut_is_refused():
    with pytest.raises(ValueError, match=r"threshold = 10: must be from 0 to 1.*heights are threshold_value"):
        ThresholdMetrics([5, 10]).update(*tiles(), 10, 10)


@pytest.mark.parametrize("thresholds", [[], [0.0], [-5], [math.nan], [math.inf]])
def test_lists_of_no_heights_are_refused(thresholds):
    with pytest.raises(ValueError, match="must be one or more heights above 0, metres"):
        ThresholdMetrics(thresholds)


def test_lists_with_a_height_twice_are_refused():
    with pytest.raises(ValueError, match="holds a height twice"):
        ThresholdMetrics([5, 10, 5.0005])


def test_table_has_a_row_a_threshold_by_rising_height(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    metrics = ThresholdMetrics([10, 5, 15])
    metrics.update(*tiles(), 0.5, [10, 5, 5, 10, 10, 10])
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    computed = metrics.compute()
    assert metrics.to_dataframe() == [{"threshold": t, **computed[t]} for t in (5.0, 10.0)]


def test_table_of_pandas():
    pandas = pytest.importorskip("pandas")
    metrics = ThresholdMetrics([5, 10])
    metrics.update(*tiles(), 0.5, 10)
    table = metrics.to_dataframe()
    assert isinstance(table, pandas.DataFrame)
    assert table["threshold"].tolist() == [10.0]
    assert table["f1"].tolist() == [metrics.compute()[10.0]["f1"]]


def test_without_pandas_the_table_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas: pip install pandas"):
        ThresholdMetrics([5]).to_dataframe()
