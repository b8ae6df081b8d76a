import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from forestgaps_jax.metrics import (
    SegmentationMetrics,
    ThresholdMetrics,
    confusion_metrics,
    iou_metric,
)

SHAPE = (3, 16, 16)


def pixels(seed=0, gap=0.4):
    """Random probabilities that know something of a random truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random(SHAPE) < gap
    return np.clip(rng.normal(0.3 + 0.4 * truth, 0.3), 0, 1).astype(np.float32), truth.astype(np.float32)


def measured(predictions, targets, valid=None, **kwargs):
    metrics = SegmentationMetrics(**kwargs)
    metrics.update(predictions, targets, valid)
    return metrics


def cells(metrics):
    matrix = metrics.compute_confusion_matrix()
    return [matrix[name] for name in ("tp", "fp", "fn", "tn")]


def cells_of_sklearn(found, truth):
    tn, fp, fn, tp = sk.confusion_matrix(np.ravel(truth) > 0.5, np.ravel(found), labels=[False, True]).ravel()
    return [tp, fp, fn, tn]


@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.0, 1.0])
@pytest.mark.parametrize("to", [np.asarray, jnp.asarray, np.ndarray.tolist], ids=["numpy", "jax", "list"])
def test_counts_are_those_of_scikit_learn(to, threshold):
    predictions, targets = pixels()
    metrics = measured(to(predictions), to(targets), threshold=threshold)
    assert cells(metrics) == cells_of_sklearn(predictions > threshold, targets)
    assert metrics.compute().items() >= {"threshold_metrics": {}}.items()
    expected = confusion_metrics(cells_of_sklearn(predictions > threshold, targets))
    assert {k: metrics.compute()[k] for k in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("mixed", [False, True], ids=["together", "mixed"])
def test_fault_09_channel_less_input_counts_the_same(mixed):
    predictions, targets = pixels()
    valid = np.random.default_rng(1).random(SHAPE) < 0.7
    plain = measured(predictions, targets, valid)
    with_channel = measured(
        predictions[..., None], targets if mixed else targets[..., None], valid[..., None]
    )
    assert cells(with_channel) == cells(plain)
    assert sum(cells(plain)) == valid.sum()


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_masks_of_any_type_count_alike(kind, to):
    predictions, targets = pixels()
    found = predictions > 0.5
    expected = cells_of_sklearn(found, targets)
    assert cells(measured(to(found.astype(kind)), to(targets.astype(kind)))) == expected


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_logits_are_cut_where_their_probability_is(to):
    targets = pixels()[1]
    logits = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32) * 4
    probability = 1 / (1 + np.exp(-logits.astype(float)))
    metrics = measured(to(logits), to(targets), threshold=0.7, from_logits=True)
    assert cells(metrics) == cells_of_sklearn(probability > 0.7, targets)


def test_probabilities_of_half_precision_are_cut_in_full():
    """0.3 in bfloat16 is 0.30078, above 0.3."""
    predictions = jnp.full(SHAPE, 0.3, jnp.bfloat16)
    assert cells(measured(predictions, jnp.ones(SHAPE), threshold=0.3)) == [np.prod(SHAPE), 0, 0, 0]


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_pixels_that_are_not_valid_may_hold_anything(to):
    predictions, targets = pixels()
    valid = np.random.default_rng(1).random(SHAPE) < 0.7
    dirty = [np.where(valid, x, nothing) for x, nothing in ((predictions, np.nan), (targets, -9999.0))]
    assert cells(measured(*map(to, dirty), to(valid))) == cells_of_sklearn(
        predictions[valid] > 0.5, targets[valid]
    )
    assert cells(measured(*map(to, dirty), to(valid.astype(np.float32)))) == cells(
        measured(predictions, targets, valid)
    )


def test_updates_add_up_until_reset():
    metrics, parts = SegmentationMetrics(), [pixels(seed) for seed in range(3)]
    for predictions, targets in parts:
        metrics.update(predictions, targets)
    found, truth = (np.concatenate(each) for each in zip(*parts, strict=True))
    assert cells(metrics) == cells_of_sklearn(found > 0.5, truth)
    metrics.reset()
    assert cells(metrics) == [0, 0, 0, 0]
    assert math.isnan(metrics.compute()["accuracy"])


def test_heights_are_counted_apart_and_not_in_the_whole():
    metrics = SegmentationMetrics()
    parts = {10.0: [pixels(1), pixels(2)], 5.0: [pixels(3)]}
    metrics.update_by_threshold(*parts[10.0][0], 10)
    metrics.update_by_threshold(*parts[10.0][1], np.float32(10.0004))
    metrics.update_by_threshold(*parts[5.0][0], 5.0)
    metrics.update(*pixels(4))
    computed = metrics.compute()
    assert list(computed["threshold_metrics"]) == [5.0, 10.0]
    for height, row in computed["threshold_metrics"].items():
        found, truth = (np.concatenate(each) for each in zip(*parts[height], strict=True))
        assert row["f1"] == pytest.approx(sk.f1_score(truth.ravel(), found.ravel() > 0.5))
    assert computed["n_pixels"] == np.prod(SHAPE)
    metrics.reset()
    assert metrics.compute()["threshold_metrics"] == {}


@pytest.mark.parametrize("height", [[5.0, 10.0, 5.0], 0, -5, math.nan, math.inf])
def test_what_is_not_one_height_is_refused(height):
    with pytest.raises(ValueError, match="must be one height above 0"):
        SegmentationMetrics().update_by_threshold(*pixels(), height)


def test_iou_of_one_batch():
    predictions, targets = pixels()
    valid = np.random.default_rng(1).random(SHAPE) < 0.7
    expected = sk.jaccard_score(targets.ravel(), predictions.ravel() > 0.3)
    assert iou_metric(predictions[..., None], targets, 0.3) == pytest.approx(expected)
    expected = sk.jaccard_score(targets[valid], predictions[valid] > 0.5)
    assert iou_metric(jnp.asarray(predictions), targets, valid=valid) == pytest.approx(expected)


# The faults of the original


def test_fault_09_empty_and_correct_is_nan_everywhere():
    nothing, by_height = np.zeros(SHAPE), ThresholdMetrics([5.0])
    metrics = measured(nothing, nothing)
    metrics.update_by_threshold(nothing, nothing, 5.0)
    by_height.update(nothing, nothing, 0.5, 5.0)
    whole = metrics.compute()
    rows = [whole, whole["threshold_metrics"][5.0], by_height.compute()[5.0]]
    for row in rows:
        for name in ("iou", "f1", "f2", "f05", "dice", "precision", "recall", "balanced_accuracy", "mcc"):
            assert math.isnan(row[name]), name
        assert (row["accuracy"], row["specificity"], row["mean_iou"]) == (1.0, 1.0, 1.0)
    assert math.isnan(iou_metric(nothing, nothing))
    assert math.isnan(metrics.compute_confusion_matrix()["tp_rate"])


def test_fault_09_counts_are_exact_past_2_to_the_24():
    """17 million found pixels, then single ones: float32 would lose each of them."""
    metrics, large, one = SegmentationMetrics(), jnp.ones((1, 4096, 1024)), np.ones((1, 1, 1))
    for _ in range(4):
        metrics.update(large, large)
    for _ in range(3):
        metrics.update(one, one)
    metrics.update(one, 0 * one)
    assert cells(metrics) == [2**24 + 3, 1, 0, 0]
    assert metrics.compute()["error_rate"] == 1 / (2**24 + 4)


def test_fault_09_one_fetch_whatever_the_number_of_updates(monkeypatch):
    predictions, targets = map(jnp.asarray, pixels())
    heights = jnp.asarray([5.0, 10.0, 5.0])
    metrics, by_height = SegmentationMetrics(), ThresholdMetrics([5.0, 10.0])
    metrics.update_by_threshold(predictions, targets, 5.0)
    fetches = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetches.append(tree) or device_get(tree))
    with jax.transfer_guard("disallow"):
        for _ in range(5):
            metrics.update(predictions, targets)
            metrics.update_by_threshold(predictions, targets, 5.0)
            by_height.update(predictions, targets, 0.5, heights)
        assert not fetches
        metrics.compute()
        by_height.compute()
    assert len(fetches) == 2


@pytest.mark.parametrize("kind", ["update", "update_by_threshold", "by_height"])
def test_fault_09_an_update_never_looks_at_a_value(kind):
    """Where there is no value yet, inside a trace, any fetch is an error."""
    metrics, by_height = SegmentationMetrics(), ThresholdMetrics([5.0, 10.0])

    @jax.jit
    def trace(predictions, targets, valid, heights):
        if kind == "update":
            metrics.update(predictions, targets, valid)
        elif kind == "update_by_threshold":
            metrics.update_by_threshold(predictions, targets, 5.0, valid)
        else:
            by_height.update(predictions, targets, 0.5, heights, valid)
        return heights

    predictions, targets = map(jnp.asarray, pixels())
    trace(predictions, targets, targets > 0, jnp.asarray([5.0, 10.0, 5.0]))
    with pytest.raises(jax.errors.ConcretizationTypeError):  # so it was indeed counted inside
        (by_height if kind == "by_height" else metrics).compute()


def test_arrays_of_the_host_pass_a_transfer_guard():
    with jax.transfer_guard("allow"):
        metrics = SegmentationMetrics()
    with jax.transfer_guard("disallow"):
        metrics.update(*pixels())
    assert cells(metrics) == cells_of_sklearn(pixels()[0] > 0.5, pixels()[1])


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((3, 16, 16, 2), "pass one of the two channels, such as that of gap, predictions[..., 1]"),
        ((3, 2, 16, 16), "channels come first: pass one of the two, such as that of gap, predictions[:, 1]"),
        ((3, 1, 16, 16), "channels first: pass predictions.transpose(0, 2, 3, 1), or predictions[:, 0]"),
        ((16, 16), "for one tile pass predictions[None]"),
        ((3, 16, 16, 3), "must be [batch, height, width, 1] or [batch, height, width]"),
        ((), "must be [batch, height, width, 1]"),
    ],
)
@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_fault_09_two_channel_input_is_refused(shape, says, to):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        SegmentationMetrics().update(to(np.zeros(shape)), to(np.zeros((3, 16, 16))))
    assert str(shape) in str(error.value)


# Errors


@pytest.mark.parametrize("wrong", ["targets", "valid"])
def test_nothing_is_broadcast(wrong):
    given = {"predictions": np.zeros(SHAPE), "targets": np.zeros(SHAPE), "valid": np.ones(SHAPE, bool)}
    given[wrong] = given[wrong][:1]
    with pytest.raises(ValueError, match=rf"{wrong} are of \(1, 16, 16\) pixels, predictions of"):
        SegmentationMetrics().update(**given)


def test_logits_of_the_host_are_refused_at_once_and_not_counted():
    metrics = measured(*pixels())
    before = cells(metrics)
    with pytest.raises(ValueError, match=r"run from -3 to 8 in valid.*probabilities.*from_logits=True"):
        metrics.update(np.array([[[8.0, -3.0]]]), np.ones((1, 1, 2)))
    assert cells(metrics) == before


def test_logits_of_the_device_are_refused_at_the_fetch_until_reset():
    metrics = SegmentationMetrics()
    metrics.update(jnp.array([[[8.0, -3.0]]]), jnp.ones((1, 1, 2)))
    metrics.update(*pixels())
    for fetch in (metrics.compute, metrics.compute_confusion_matrix):
        with pytest.raises(ValueError, match=r"run from -3 to 8 in valid.*from_logits=True"):
            fetch()
    metrics.reset()
    metrics.update_by_threshold(jnp.array([[[8.0, -3.0]]]), jnp.ones((1, 1, 2)), 5.0)
    with pytest.raises(ValueError, match="from_logits=True"):
        metrics.compute()


def test_blended_probabilities_may_be_a_rounding_above_one():
    assert cells(measured(np.full(SHAPE, 1.00001), np.ones(SHAPE))) == [np.prod(SHAPE), 0, 0, 0]


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_predictions_without_a_number_are_refused(to, from_logits):
    predictions = np.full((1, 2, 2), 0.5)
    predictions[0, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"nan.*leave such pixels out by valid"):
        measured(to(predictions), to(np.ones((1, 2, 2))), from_logits=from_logits).compute()


@pytest.mark.parametrize("value", [0.5, 255, -1, np.nan])
@pytest.mark.parametrize("to", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_targets_that_are_no_mask_are_refused(to, value):
    with pytest.raises(ValueError, match="targets hold other values than 1 for gap and 0 for not"):
        measured(to(np.zeros((1, 2, 2))), to(np.full((1, 2, 2), value))).compute()


@pytest.mark.parametrize("threshold", [10, -0.1, math.nan, "cuda", None])
def test_a_cut_that_is_no_probability_is_refused(threshold, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    with pytest.raises(ValueError, match=re.escape(f"threshold = {threshold!r}: must be from 0 to 1")):
        SegmentationMetrics(threshold)


def test_a_cut_in_the_place_of_valid_is_refused():
    """Where the original took it."""
    with pytest.raises(ValueError, match=r"valid have shape \(\)"):
        SegmentationMetrics().update(*pixels(), 0.5)


def test_text_is_refused():
    with pytest.raises(TypeError, match="targets have type <U1: must be numbers or booleans"):
        SegmentationMetrics().update(np.zeros((1, 1, 2)), np.array([[["a", "b"]]]))
