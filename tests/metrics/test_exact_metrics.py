"""Metrics from exact counts, against fractions of Python's integers."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.metrics import confusion_matrix, confusion_metrics, threshold_index

COUNTS = st.one_of(st.integers(0, 3), st.integers(0, 2**50))


def exact(above, below):
    return Fraction(above) / Fraction(below) if below else math.nan


@settings(max_examples=200)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_metrics_are_the_fractions_of_exact_integers_and_nan_where_there_is_none(tp, fp, fn, tn):
    total, metrics = tp + fp + fn + tn, confusion_metrics([tp, fp, fn, tn])
    recall, specificity = exact(tp, tp + fn), exact(tn, tn + fp)
    ious = [x for x in (exact(tp, tp + fp + fn), exact(tn, tn + fp + fn)) if not math.isnan(x)]
    expected = {
        "iou": exact(tp, tp + fp + fn),
        "mean_iou": sum(ious) / len(ious) if ious else math.nan,
        "f1": exact(2 * tp, 2 * tp + fp + fn),
        "f2": exact(5 * tp, 5 * tp + 4 * fn + fp),
        "f05": exact(5 * tp, 5 * tp + fn + 4 * fp),
        "precision": exact(tp, tp + fp),
        "recall": recall,
        "specificity": specificity,
        "accuracy": exact(tp + tn, total),
        "error_rate": exact(fp + fn, total),
        "balanced_accuracy": (recall + specificity) / 2,
        "gap_proportion": exact(tp + fn, total),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-14, nan_ok=True), name
        assert math.isnan(metrics[name]) or 0 <= metrics[name] <= 1
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    mcc = (tp * tn - fp * fn) / math.sqrt(product) if product else math.nan
    assert metrics["mcc"] == pytest.approx(mcc, rel=1e-14, abs=1e-300, nan_ok=True)
    assert metrics["dice"] == metrics["f1"] or math.isnan(metrics["f1"])
    # Truth and prediction in each other's place.
    mirrored = confusion_metrics([tp, fn, fp, tn])
    for name, other in (("precision", "recall"), ("f2", "f05"), ("iou", "iou"), ("mcc", "mcc")):
        np.testing.assert_allclose(mirrored[name], metrics[other], rtol=1e-14)


@settings(max_examples=50)
@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), min_size=1, max_size=5))
def test_rates_of_a_class_add_up_to_one_and_rows_to_the_whole(rows):
    matrix = confusion_matrix(np.array(rows))
    for name, column in zip(("tp", "fp", "fn", "tn"), zip(*rows, strict=True), strict=True):
        assert matrix[name] == sum(column)
    assert matrix["total_gap_pixels"] + matrix["total_non_gap_pixels"] == matrix["total_pixels"]
    tp, fp, fn, tn = (matrix[name] for name in ("tp", "fp", "fn", "tn"))
    for hit, missed, size in (("tp_rate", "fn_rate", tp + fn), ("tn_rate", "fp_rate", fp + tn)):
        assert math.isnan(matrix[hit]) == math.isnan(matrix[missed]) == (size == 0)
        assert size == 0 or matrix[hit] + matrix[missed] == pytest.approx(1)


# A list of one length: one compile.
LISTED = st.lists(st.integers(1, 6000), min_size=4, max_size=4, unique=True).map(
    lambda x: [c / 100 for c in x]
)


@settings(max_examples=40)
@given(LISTED, st.lists(st.floats(-1e-3, 1e-3), min_size=4, max_size=4), st.permutations(range(4)))
def test_each_height_within_a_millimetre_is_found_where_it_is_listed(listed, off, order):
    near = np.float32([listed[i] + 0.9 * off[i] for i in order])
    np.testing.assert_array_equal(threshold_index(jnp.asarray(near), listed), order)
    between = np.float32([height + 0.005 for height in listed])
    np.testing.assert_array_equal(threshold_index(jnp.asarray(between), listed), 4)
