import math

import numpy as np
import pytest
from sklearn import metrics as sk

from forestgaps_jax.config import Config
from forestgaps_jax.inference import format_table, mean_iou_over_thresholds, opening_baseline, score_baselines
from forestgaps_jax.types import Grid, Site

SIZE, THRESHOLDS = 8, (5.0, 12.0)
CONFIG = Config(tile_size=SIZE, thresholds=THRESHOLDS)
PLACES = np.array([[0, 2, 3], [0, 20, 11], [1, 0, 0], [1, 12, 30]], np.int32)


def made_site(seed, shape, resolution):
    rng = np.random.default_rng(seed)
    chm = np.clip(rng.normal(8, 8, shape), 0, None).astype(np.float32)
    dsm = (chm + 400 + 0.3 * np.arange(shape[1])).astype(np.float32)
    for raster in (chm, dsm):
        raster[rng.uniform(size=shape) < 0.1] = np.nan
    return Site(f"site {seed}", dsm, chm, Grid(resolution))


SITES = [made_site(0, (40, 30), 1.0), made_site(1, (24, 50), 2.0)]


@pytest.fixture(scope="module")
def scores():
    return score_baselines(SITES, PLACES, CONFIG)


def pixels():
    """True canopy and the opening's of every valid pixel of the tiles."""
    openings = [opening_baseline(site.dsm, site.grid.resolution) for site in SITES]
    parts = []
    for site, row, column in PLACES:
        window = np.s_[row : row + SIZE, column : column + SIZE]
        here = SITES[site].valid[window]
        parts.append((SITES[site].chm[window][here], openings[site][window][here]))
    return (np.concatenate(part) for part in zip(*parts, strict=True))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_opening_scores_as_computed_from_the_pixels(scores, threshold):
    canopy, opening = pixels()
    truth, found = canopy < threshold, opening < threshold
    got = scores["grey_opening"]["threshold_metrics"][threshold]
    expected = sk.jaccard_score, sk.f1_score, sk.precision_score, sk.recall_score
    assert [got[name] for name in ("iou", "f1", "precision", "recall")] == pytest.approx(
        [score(truth, found) for score in expected]
    )
    assert got["n_samples"] == len(PLACES)
    assert got["n_pixels"] == len(canopy)


def test_all_pixels_of_all_thresholds_are_pooled(scores):
    canopy, opening = pixels()
    truth, found = (np.concatenate([x < t for t in THRESHOLDS]) for x in (canopy, opening))
    cells = {"tp": truth & found, "fp": ~truth & found, "fn": truth & ~found, "tn": ~truth & ~found}
    matrix = scores["grey_opening"]["confusion_matrix"]
    assert {name: matrix[name] for name in cells} == {name: cell.sum() for name, cell in cells.items()}


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_all_gap_scores_the_gap_fraction(scores, threshold):
    canopy, _ = pixels()
    got = scores["all_gap"]["threshold_metrics"][threshold]
    assert got["iou"] == got["precision"] == pytest.approx((canopy < threshold).mean())
    assert got["recall"] == 1


def test_tiles_without_a_valid_pixel_are_nan_not_0():
    site = made_site(2, (20, 20), 1.0)
    site.chm[:] = np.nan
    scores = score_baselines([site], np.zeros((1, 3), np.int32), CONFIG)
    assert math.isnan(scores["grey_opening"]["threshold_metrics"][5.0]["iou"])


def test_table_has_a_row_for_each_threshold_and_one_of_means(scores):
    head, names, *rows, means, outline, objects = format_table(
        {"model": scores["grey_opening"], **scores}
    ).splitlines()
    assert head.split() == ["model", "grey", "opening", "all", "gap"]
    assert names.split() == ["height", "gaps"] + 3 * ["IoU", "F1", "prec.", "recall"]
    assert [row.split()[:2] for row in rows] == [["5", "m"], ["12", "m"]]
    for row, threshold in zip(rows, THRESHOLDS, strict=True):
        values = [float(cell) for cell in row.split()[3:]]
        assert len(values) == 12
        assert values[8] == pytest.approx(scores["all_gap"]["threshold_metrics"][threshold]["iou"], abs=6e-4)
    assert means.split()[:2] == ["mean", "IoU"]
    expected = [
        np.mean([m["iou"] for m in scores[n]["threshold_metrics"].values()])
        for n in ("grey_opening", "all_gap")
    ]
    assert [float(cell) for cell in means.split()[2:]] == pytest.approx([expected[0], *expected], abs=6e-4)
    for line, label, name in ((outline, "outline", "boundary_f1"), (objects, "object", "object_f1")):
        expected = [scores[n][name] for n in ("grey_opening", "grey_opening", "all_gap")]
        assert line.split()[:2] == [label, "F1"]
        assert [float(c) for c in line.split()[2:]] == pytest.approx(expected, abs=6e-4, nan_ok=True)


def test_outlines_and_objects_are_scored_only_if_asked_for(scores):
    plain = {name: {**metrics} for name, metrics in scores.items()}
    for metrics in plain.values():
        del metrics["boundary_f1"], metrics["object_f1"]
    assert format_table(plain).splitlines()[-1].split()[:2] == ["mean", "IoU"]


def test_means_stand_under_their_columns(scores):
    _, names, *_, means, _, _ = format_table(scores).splitlines()
    ends = [i + 3 for i in range(len(names)) if names.startswith("IoU", i)]
    assert [means[:end].split()[-1] for end in ends] == means.split()[2:]


def with_ious(*ious):
    return {"threshold_metrics": {float(i): {"iou": iou} for i, iou in enumerate(ious)}}


def test_mean_iou_leaves_out_what_is_undefined():
    assert mean_iou_over_thresholds(with_ious(0.5, math.nan, 0.7)) == pytest.approx(0.6)


def test_mean_iou_of_nothing_defined_is_nan():
    assert math.isnan(mean_iou_over_thresholds(with_ious(math.nan, math.nan)))


def test_errors_of_heights_stand_under_the_model_that_predicts_them(scores):
    errors = {"rmse": 2.314, "mae": 1.52, "r2": 0.87}
    plain = scores["grey_opening"]
    table = format_table({"model": plain | {"regression": errors}, "other": plain})
    *_, last = table.splitlines()
    assert last.split() == ["heights", "(m)", "RMSE", "2.31", "MAE", "1.52", "R2", "0.87"]
    both = format_table({"other": plain, "model": plain | {"regression": errors}})
    line, names = both.splitlines()[-1], both.splitlines()[0]
    assert line.index("RMSE") >= names.index("other") + len("other")
    assert abs(line.index("RMSE") - names.index("model")) <= 3
    assert "heights" not in format_table({"other": plain})
