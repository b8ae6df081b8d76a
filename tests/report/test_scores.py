import math
import re

import pytest

from forestgaps_jax.metrics import confusion_metrics, from_json
from forestgaps_jax.report.scores import best_cells, confusion, curves, score_tables


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.5, 0.7, 0.1], [False, True, False]),
        ([0.7, 0.70004, 0.1], [True, True, False]),  # the same to the reader
        ([math.nan, 0.2, 0.1], [False, True, False]),
        ([math.nan, 0.2, None], [False, False, False]),
        ([0.0, 0.0], [True, True]),
    ],
)
def test_the_best_of_a_row_is_marked(values, best):
    assert [cell.best for cell in best_cells(values)] == best


def test_the_table_holds_the_recorded_scores(scores):
    tables = score_tables(from_json(scores))
    assert tables["predictors"] == ["model", "grey opening", "all gap"]
    assert [table["titles"] for table in tables["tables"]] == [
        ["Gap IoU", "Gap F1"],
        ["Outline F1", "Object F1"],
    ]
    for (label, _, groups), key in zip(tables["tables"][0]["rows"], ("5", "15"), strict=True):
        assert label == f"{key} m"
        for cells, metric in zip(groups, ("iou", "f1"), strict=True):
            expected = [scores[name]["threshold_metrics"][key][metric] for name in scores]
            assert [float(cell.text) for cell in cells] == pytest.approx(expected, abs=5e-4)


def test_scores_that_a_run_did_not_take_have_no_column(scores):
    fewer = from_json(scores)
    for metrics in fewer.values():
        for row in metrics["threshold_metrics"].values():
            row.pop("object_f1"), row.pop("boundary_f1"), row.pop("pr_auc", None)
    tables = score_tables(fewer)
    assert len(tables["tables"]) == 1
    assert "PR AUC" not in tables["own_titles"]


@pytest.mark.parametrize(
    "cells", [[6, 2, 3, 10], [0, 0, 0, 7], [5, 0, 0, 0], [0, 4, 0, 3], [123457, 3, 999, 1]]
)
def test_counts_come_back_from_the_rates(cells):
    (matrix,) = confusion({"model": {"threshold_metrics": {5.0: confusion_metrics(cells)}}})
    assert [matrix[name] for name in ("tp", "fp", "fn", "tn")] == cells


def test_counts_add_up_to_the_recorded_matrix(scores):
    matrices = confusion(from_json(scores))
    for name in ("tp", "fp", "fn", "tn"):
        assert sum(matrix[name] for matrix in matrices) == scores["model"]["confusion_matrix"][name]


def test_curves_are_drawn_of_a_run_without_validation():
    epochs = [{"iou": 0.5}, {"iou": 0.6}]
    history = {
        "train_loss": [1.0, 0.5],
        "val_loss": [math.nan, math.nan],
        "train_metrics": epochs,
        "val_metrics": [{}, {}],
        "lr": [0.1, 0.01],
    }
    charts = curves(history)
    labels = [re.search(r'aria-label="([^"]+)"', chart)[1] for chart in charts]
    assert labels == ["loss over 2 epochs", "gap IoU over 2 epochs", "learning rate over 2 epochs"]
    assert "validation" not in "".join(charts)
    with_rmse = [{**metrics, "regression": {"rmse": 2.0}} for metrics in epochs]
    assert len(curves({**history, "train_metrics": with_rmse})) == 4
