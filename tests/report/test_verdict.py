import math

import numpy as np
import pytest

from forestgaps_jax.report.examination import Examination
from forestgaps_jax.report.verdict import judge


def scores(**ious):
    return {
        name: {"threshold_metrics": {5.0 * (i + 1): {"iou": iou} for i, iou in enumerate(values)}}
        for name, values in ious.items()
    }


@pytest.mark.parametrize(
    ("model", "opening", "tone", "said"),
    [
        ([0.9, 0.8], [0.8, 0.7], "model", "0.850 against 0.750 for the grey opening"),
        ([0.8, 0.7], [0.9, 0.8], "reference", "the grey opening, which needs no training, is better"),
        ([0.801, 0.7], [0.8, 0.7], "equal", "no better than the grey opening"),
        ([0.1, 0.1], [0.05, 0.05], "reference", "calling everything gap, which needs no training, is better"),
    ],
)
def test_the_better_of_the_references_is_what_counts(model, opening, tone, said):
    verdict = judge(scores(model=model, grey_opening=opening, all_gap=[0.2, 0.3]), None)
    assert verdict.tone == tone
    assert said in verdict.headline


def test_a_lead_is_of_the_means_over_thresholds_that_all_have():
    """Without the threshold that the opening lacks, the model is behind."""
    nan = math.nan
    verdict = judge(scores(model=[0.5, 0.9], grey_opening=[0.6, nan], all_gap=[0.1, 0.2]), None)
    assert verdict.tone == "reference"
    assert "0.600 mean gap IoU against 0.500" in verdict.headline


@pytest.mark.parametrize("given", [None, {}, scores(model=[math.nan], all_gap=[math.nan])])
def test_without_a_score_nothing_is_claimed(given):
    assert judge(given, None).tone == "open"


def test_the_detail_counts_thresholds_and_tiles():
    model = np.array([[[4, 0, 0, 1], [1, 1, 1, 1]], [[2, 2, 0, 0], [0, 0, 0, 5]]])
    opening = np.array([[[3, 0, 1, 1], [2, 0, 0, 2]], [[2, 2, 0, 0], [0, 0, 0, 5]]])
    places, predicted = np.zeros((2, 3), np.int32), np.zeros((2, 2, 1, 1), bool)
    examination = Examination([], places, 1, (5.0, 10.0), predicted, model, opening, None)
    given = scores(model=[0.9, 0.7], grey_opening=[0.7, 0.71], all_gap=[0.2, 0.2])
    detail = judge(given, examination).detail
    assert "at 1 of 2 height thresholds" in detail
    assert "on 1 of 3 pairs" in detail  # the last tile has no gap in either
    assert "(1 are even)" in detail
    assert "Calling everything gap has 0.200." in detail
