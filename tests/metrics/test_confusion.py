import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from forestgaps_jax.metrics import (
    CELLS,
    ConfusionCounts,
    ExactCounter,
    confusion_matrix,
    confusion_metrics,
    threshold_index,
)

SHAPE = (4, 16, 16, 1)
NAMES = {
    "iou", "mean_iou", "f1", "f2", "f05", "dice", "precision", "recall", "specificity", "accuracy",
    "balanced_accuracy", "error_rate", "mcc", "n_pixels", "gap_proportion",
}  # fmt: skip
SKLEARN = {
    "iou": sk.jaccard_score,
    "mean_iou": functools.partial(sk.jaccard_score, average="macro"),
    "f1": sk.f1_score,
    "f2": functools.partial(sk.fbeta_score, beta=2),
    "f05": functools.partial(sk.fbeta_score, beta=0.5),
    "dice": sk.f1_score,
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "specificity": functools.partial(sk.recall_score, pos_label=0),
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "error_rate": sk.zero_one_loss,
    "mcc": sk.matthews_corrcoef,
    "gap_proportion": lambda truth, predicted: truth.mean(),
    "n_pixels": lambda truth, predicted: truth.size,
}

update = jax.jit(lambda counts, *args, **kwargs: counts.update(*args, **kwargs))
merge = jax.jit(ConfusionCounts.merge)


def masks(seed, gap=0.4, wrong=0.2):
    """A random truth, and a prediction that differs from it in a share of the pixels."""
    rng = np.random.default_rng(seed)
    truth = rng.random(SHAPE) < gap
    return truth ^ (rng.random(SHAPE) < wrong), truth


def cells(predicted, truth):
    """TP, FP, FN, TN by scikit-learn."""
    tn, fp, fn, tp = sk.confusion_matrix(truth.ravel(), predicted.ravel(), labels=[False, True]).ravel()
    return [int(n) for n in (tp, fp, fn, tn)]


def counts_of(rows, samples=None):
    """Counts that stand at the given exact integers, none of which is ever allocated as pixels."""
    rows = np.asarray(rows, np.uint64).reshape(-1, 4)
    low, high = (rows & np.uint64(2**32 - 1)).astype(np.uint32), (rows >> np.uint64(32)).astype(np.uint32)
    samples = np.zeros(len(rows)) if samples is None else samples
    cells = ExactCounter(jnp.asarray(low), jnp.asarray(high))
    return ConfusionCounts(cells, jnp.asarray(samples, jnp.int32))


# Metrics from counts


@pytest.mark.parametrize(("gap", "wrong"), [(0.4, 0.2), (0.01, 0.02), (0.97, 0.3), (0.5, 0.5), (0.3, 0.0)])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_metric_is_that_of_scikit_learn(name, gap, wrong):
    predicted, truth = masks(7, gap, wrong)
    ours = confusion_metrics(cells(predicted, truth))[name]
    assert ours == pytest.approx(SKLEARN[name](truth.ravel(), predicted.ravel()), rel=1e-12)


def test_metrics_are_plain_floats_under_the_names_of_the_contract():
    metrics = confusion_metrics([6, 2, 2, 10])
    assert set(metrics) == NAMES
    assert {type(value) for value in metrics.values()} == {float}


@pytest.mark.parametrize(
    ("counts", "undefined", "defined"),
    [
        (
            [0, 0, 0, 9],  # no gap, none predicted
            {"iou", "f1", "f2", "f05", "dice", "precision", "recall", "balanced_accuracy", "mcc"},
            {"mean_iou": 1.0, "specificity": 1.0, "accuracy": 1.0, "error_rate": 0.0, "gap_proportion": 0.0},
        ),
        (
            [9, 0, 0, 0],  # all gap, all found
            {"specificity", "balanced_accuracy", "mcc"},
            {"iou": 1.0, "mean_iou": 1.0, "f1": 1.0, "precision": 1.0, "recall": 1.0, "gap_proportion": 1.0},
        ),
        (
            [0, 0, 4, 5],  # gap, none predicted
            {"precision", "mcc"},
            {"iou": 0.0, "f1": 0.0, "f2": 0.0, "recall": 0.0, "balanced_accuracy": 0.5},
        ),
        (
            [0, 4, 0, 5],  # no gap, some predicted
            {"recall", "balanced_accuracy", "mcc"},
            {"iou": 0.0, "f1": 0.0, "precision": 0.0, "mean_iou": 5 / 18},
        ),
        ([0, 0, 0, 0], NAMES - {"n_pixels"}, {"n_pixels": 0.0}),
    ],
)
def test_undefined_is_nan_and_nothing_else_is(counts, undefined, defined):
    metrics = confusion_metrics(counts)
    assert {name for name, value in metrics.items() if math.isnan(value)} == undefined
    for name, value in defined.items():
        assert metrics[name] == pytest.approx(value), name


def test_rows_are_added_before_any_ratio():
    rows = np.array([[1, 2, 9, 5], [90, 0, 0, 7]])
    assert confusion_metrics(rows)["recall"] == pytest.approx(0.91)
    assert confusion_metrics(rows) == confusion_metrics(counts_of(rows))


def test_metrics_of_billions_of_pixels_are_exact():
    tp, fp, fn, tn = (7_000_000_001, 3, 5, 9_000_000_000_007)
    metrics = confusion_metrics(counts_of([tp, fp, fn, tn]))
    assert metrics["iou"] == float(Fraction(tp, tp + fp + fn))
    assert metrics["error_rate"] == float(Fraction(8, tp + fp + fn + tn))
    above = Fraction(tp * tn - fp * fn) ** 2
    below = Fraction((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics["mcc"] == pytest.approx(math.sqrt(above / below), rel=1e-15)


def test_confusion_matrix_has_exact_integers_and_rates_of_the_true_class():
    tp, fp, fn, tn = (3 * 10**9, 10**9, 2**33 + 1, 5)
    matrix = confusion_matrix(counts_of([[tp, fp, 0, 0], [0, 0, fn, tn]]))
    expected = {
        "tp": tp, "fp": fp, "fn": fn, "tn": tn,
        "total_pixels": tp + fp + fn + tn,
        "total_gap_pixels": tp + fn,
        "total_non_gap_pixels": fp + tn,
    }  # fmt: skip
    rates = {
        "tp_rate": tp / (tp + fn),
        "fn_rate": fn / (tp + fn),
        "fp_rate": fp / (fp + tn),
        "tn_rate": tn / (fp + tn),
    }
    assert matrix == expected | rates
    assert all(type(matrix[name]) is int for name in expected)
    assert all(type(matrix[name]) is float for name in rates)


def test_rates_of_a_class_without_pixels_are_nan():
    matrix = confusion_matrix(np.array([0, 1, 0, 3]))
    assert math.isnan(matrix["tp_rate"])
    assert math.isnan(matrix["fn_rate"])
    assert matrix["fp_rate"] == 0.25


# Counting


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 1))
def test_counts_are_those_of_scikit_learn_on_the_valid_pixels(seed, gap, wrong, share):
    predicted, truth = masks(seed, gap, wrong)
    valid = np.random.default_rng(seed).random(SHAPE) < share
    counts = update(
        ConfusionCounts.zeros(1), jnp.asarray(predicted), jnp.asarray(truth), valid=jnp.asarray(valid)
    )
    assert counts.to_numpy().tolist() == [cells(predicted[valid], truth[valid])]
    assert counts.samples.tolist() == [valid.any(axis=(1, 2, 3)).sum()]


def test_updates_add_up_and_the_first_is_left_as_it_was():
    first = ConfusionCounts.zeros(1)
    pairs = [masks(seed) for seed in range(3)]
    last = functools.reduce(lambda c, pair: update(c, *map(jnp.asarray, pair)), pairs, first)
    assert last.to_numpy()[0].tolist() == np.sum([cells(*pair) for pair in pairs], axis=0).tolist()
    assert last.samples.tolist() == [3 * SHAPE[0]]
    assert first.to_numpy().sum() == 0


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int32, np.uint8])
def test_targets_of_any_type_count_alike(dtype):
    predicted, truth = masks(1)
    counts = update(ConfusionCounts.zeros(1), jnp.asarray(predicted), jnp.asarray(truth.astype(dtype)))
    assert counts.to_numpy()[0].tolist() == cells(predicted, truth)


def test_nan_targets_in_pixels_without_data_are_not_counted():
    predicted, truth = masks(2)
    valid = np.random.default_rng(2).random(SHAPE) < 0.5
    targets = jnp.asarray(np.where(valid, truth, np.nan), jnp.float32)
    counts = update(ConfusionCounts.zeros(1), jnp.asarray(predicted), targets, valid=jnp.asarray(valid))
    assert counts.to_numpy()[0].tolist() == cells(predicted[valid], truth[valid])


def test_each_sample_is_counted_in_the_row_of_its_threshold_and_strangers_in_the_last():
    thresholds = (5.0, 10.0, 15.0)
    heights = [10.0, 7.3, 5.0, 10.0]
    predicted, truth = map(jnp.asarray, masks(3))
    group = threshold_index(jnp.asarray(heights), thresholds)
    counts = update(ConfusionCounts.zeros(4), predicted, truth, group=group)
    expected = np.zeros((4, 4), int)
    for b, row in enumerate([1, 3, 0, 1]):
        expected[row] += cells(np.asarray(predicted[b]), np.asarray(truth[b]))
    assert counts.to_numpy().tolist() == expected.tolist()
    assert counts.samples.tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize(
    ("height", "row"), [(5.0, 0), (5.0005, 0), (4.9995, 0), (5.002, 3), (0.1, 2), (np.nan, 3), (1e9, 3)]
)
def test_threshold_is_found_within_a_millimetre(height, row):
    assert threshold_index(jnp.asarray([height]), (5.0, 10.0, 0.1)).tolist() == [row]


def test_compiled_and_not_count_the_same():
    predicted, truth = map(jnp.asarray, masks(4))
    plain = ConfusionCounts.zeros(2).update(predicted, truth)
    compiled = update(ConfusionCounts.zeros(2), predicted, truth)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_array_equal(one, other)


def test_counts_can_be_donated():
    add = jax.jit(ConfusionCounts.merge, donate_argnums=0)
    assert add(counts_of([1, 2, 3, 4]), counts_of([1, 1, 1, 1])).to_numpy().tolist() == [[2, 3, 4, 5]]
    assert add(ConfusionCounts.zeros(1), counts_of([1, 1, 1, 1])).to_numpy().tolist() == [[1, 1, 1, 1]]


# Exactness


def test_doubling_past_two_to_the_32_matches_exact_integers():
    predicted, truth = masks(5)
    counts = update(ConfusionCounts.zeros(1), *map(jnp.asarray, (predicted, truth)))
    exact = start = np.array(cells(predicted, truth), object)
    for step in range(30):
        counts, exact = merge(counts, counts), 2 * exact
        if step % 3 == 0:  # odd numbers, so that no bit stays empty
            counts, exact = update(counts, *map(jnp.asarray, (predicted, truth))), exact + start
        assert counts.to_numpy()[0].tolist() == exact.tolist()
    assert sum(exact) > 2**39


@pytest.mark.parametrize("full", [2**24, 2**31 - 1, 2**32 - 1, 3 * 10**9, 2**33 - 1, 2**40])
def test_a_single_pixel_is_never_lost(full):
    pixels = jnp.asarray([[True, True, False, False]])
    counts = counts_of([full] * 4)
    for added in (1, 2, 3):
        counts = update(counts, pixels, jnp.asarray([[1, 0, 1, 0]]))
        assert counts.to_numpy()[0].tolist() == [full + added] * 4


def test_the_batch_itself_must_fit_and_is_refused_before_it_is_computed():
    largest, beyond = (jax.ShapeDtypeStruct((1, 2**16, width), jnp.bool_) for width in (2**16 - 1, 2**16))

    def count(predictions, targets):
        return ConfusionCounts.zeros(1).update(predictions, targets).cells.low

    assert jax.eval_shape(count, largest, largest).shape == (1, 4)
    with pytest.raises(ValueError, match=r"4294967296 pixels.*smaller batches"):
        jax.eval_shape(count, beyond, beyond)


BIG = st.lists(st.integers(0, 2**61), min_size=8, max_size=8)


@settings(max_examples=25, deadline=None)
@given(first=BIG, second=BIG, third=BIG)
def test_merging_adds_exactly_in_any_order_and_grouping(first, second, third):
    numbers = first, second, third
    counts = [counts_of(each, samples=[each[0] % 1000, 1]) for each in numbers]
    exact = [sum(column) for column in zip(*numbers, strict=True)]
    for a, b, c in itertools.permutations(counts):
        for merged in (merge(merge(a, b), c), merge(a, merge(b, c))):
            assert merged.to_numpy().ravel().tolist() == exact
            assert merged.samples.tolist() == [sum(each[0] % 1000 for each in numbers), 3]


def test_nothing_is_the_neutral_element():
    counts = counts_of([1, 2**32, 3, 2**40 + 5], samples=[7])
    merged = merge(ConfusionCounts.zeros(1), counts)
    assert merged.to_numpy().tolist() == [[1, 2**32, 3, 2**40 + 5]]
    assert merged.samples.tolist() == [7]


# Errors


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_predictions_that_are_not_boolean_are_refused(dtype, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    predicted, truth = map(jnp.asarray, masks(6))
    with pytest.raises(TypeError, match=r"predictions are .*32: must be bool, such as logits > 0"):
        ConfusionCounts.zeros(1).update(predicted.astype(dtype), truth)


@pytest.mark.parametrize("wrong", ["targets", "valid"])
def test_shapes_that_would_broadcast_are_refused_naming_both(wrong):
    predicted, truth = map(jnp.asarray, masks(6))
    given = {"targets": truth, "valid": truth}
    given[wrong] = given[wrong][..., 0]
    with pytest.raises(ValueError, match=rf"{wrong}.*\(4, 16, 16\).*\(4, 16, 16, 1\)"):
        ConfusionCounts.zeros(1).update(predicted, given["targets"], valid=given["valid"])


def test_cells_are_named_in_the_order_of_the_counts():
    assert dict(zip(CELLS, [1, 2, 3, 4], strict=True)).items() <= confusion_matrix(np.arange(1, 5)).items()
