import json
import math

import numpy as np
import pytest

from forestgaps_jax.metrics import from_json, summarize_rows, to_json


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_is_not_finite_becomes_null(value):
    assert to_json({"iou": [value, 1.0]}) == {"iou": [None, 1.0]}


@pytest.mark.parametrize(
    ("key", "text"), [(5.0, "5"), (7.5, "7.5"), (0.25, "0.25"), (3, "3"), ("iou", "iou")]
)
def test_keys_become_strings_as_a_reader_writes_them(key, text):
    assert to_json({key: 1}) == {text: 1}


def test_what_json_can_hold_stays_as_it_is():
    value = {"a": [1, 2.5, "text", True, None, {"b": 2**40}]}
    assert to_json(value) == value


def test_tuples_become_lists_at_any_depth():
    assert to_json({"a": ((1, (2,)),)}) == {"a": [[1, [2]]]}


def test_the_given_value_is_not_changed():
    value = {5.0: {"iou": math.nan}}
    to_json(value)
    assert math.isnan(value[5.0]["iou"])


def test_a_summary_survives_strict_json():
    summary = summarize_rows(np.array([[0, 0, 0, 9], [2**40, 1, 0, 3]]), (5.0, 7.5), np.array([1, 2]))
    read = json.loads(json.dumps(to_json(summary), allow_nan=False))
    assert read["threshold_metrics"]["5"]["iou"] is None
    assert read["threshold_metrics"]["7.5"]["n_samples"] == 2
    assert read["confusion_matrix"]["tp"] == 2**40
    assert read["loss"] is None


@pytest.mark.parametrize("height", [5.0, 7.25, 0.001, 123.456, 10 / 3, 1234.567])
def test_a_threshold_reads_back_as_the_same_height(height):
    assert [float(key) for key in to_json({height: 1.0})] == [height]


def test_metrics_come_back_as_they_were():
    metrics = {
        "f1": 0.5,
        "iou": math.nan,
        "threshold_metrics": {5.0: {"n_samples": 2}, 7.5: {"f1": math.nan}},
    }
    back = from_json(json.loads(json.dumps(to_json([metrics, {"lr": [1e-3]}]))))
    assert math.isnan(back[0].pop("iou"))
    assert math.isnan(back[0]["threshold_metrics"][7.5].pop("f1"))
    assert back == [{"f1": 0.5, "threshold_metrics": {5.0: {"n_samples": 2}, 7.5: {}}}, {"lr": [1e-3]}]
