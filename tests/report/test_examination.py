from dataclasses import replace

import numpy as np
import pytest

from forestgaps_jax import create_state
from forestgaps_jax.data import create_data
from forestgaps_jax.data.sources import load_sites
from forestgaps_jax.inference import score_baselines
from forestgaps_jax.inference.loading import load_run
from forestgaps_jax.metrics import confusion_metrics
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.report.evidence import gather, worst_tiles
from forestgaps_jax.report.examination import examine, predict_tiles
from forestgaps_jax.report.record import read_record


@pytest.fixture(scope="module")
def evidence(trained):
    return gather(read_record(trained))


def test_the_counts_are_those_that_the_run_recorded(evidence, scores):
    """Two ways: the sampler on the device, and tiles cut on the host."""
    assert evidence.missing == []
    model = evidence.examination.model
    recorded = scores["model"]["confusion_matrix"]
    assert model.sum(axis=(0, 1)).tolist() == [recorded[name] for name in ("tp", "fp", "fn", "tn")]
    for row, metrics in zip(model.sum(axis=1), scores["model"]["threshold_metrics"].values(), strict=True):
        assert confusion_metrics(row)["iou"] == pytest.approx(metrics["iou"])


def test_the_opening_is_counted_as_the_run_did(evidence, scores):
    for row, metrics in zip(
        evidence.examination.opening.sum(axis=1),
        scores["grey_opening"]["threshold_metrics"].values(),
        strict=True,
    ):
        assert confusion_metrics(row)["iou"] == pytest.approx(metrics["iou"])


def test_every_known_pixel_is_in_the_calibration_of_each_threshold(evidence):
    examination = evidence.examination
    for bins, cells in zip(examination.calibration, examination.model, strict=True):
        tp, _, fn, _ = cells.sum(axis=0)
        assert bins.pixels.sum() == cells.sum()
        assert bins.gaps.sum() == tp + fn


def test_the_worst_tiles_have_the_largest_share_of_wrong_pixels_each_once(evidence):
    cells = evidence.examination.model.astype(float)
    wrong = (cells[..., 1] + cells[..., 2]) / cells.sum(axis=-1)
    rows, tiles = worst_tiles(evidence.examination, count=3)
    assert len(set(tiles)) == 3
    np.testing.assert_allclose(wrong[rows, tiles], np.sort(wrong.max(axis=0))[::-1][:3])
    assert [shown.tile_index for shown in evidence.worst][:3] == tiles.tolist()
    for shown in evidence.worst:
        seen = (shown.tile.probability > 0.5) != shown.tile.truth
        assert (seen & shown.tile.valid).sum() / shown.tile.valid.sum() == pytest.approx(
            wrong[shown.threshold_index, shown.tile_index]
        )


def test_without_a_wrong_pixel_there_is_no_worst_tile(evidence):
    perfect = evidence.examination.model.copy()
    perfect[..., [0, 3]] += perfect[..., [2, 1]]
    perfect[..., [1, 2]] = 0
    assert worst_tiles(replace(evidence.examination, model=perfect))[1].size == 0


def test_the_shown_tiles_come_from_all_over_the_test(evidence):
    indices = [shown.tile_index for shown in evidence.spread]
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert indices[-1] == len(evidence.examination.places) - 1
    assert {shown.tile.threshold for shown in evidence.spread} == {5.0, 15.0}


def test_tiles_are_predicted_alike_in_whole_and_in_filled_batches(trained):
    state, config = load_run(trained)
    sites = load_sites(config)
    places = np.asarray(create_data(sites, config).test.places)[:3]
    together = list(predict_tiles(state, config, sites, places, [5.0, 15.0, 5.0]))
    alone = [
        next(predict_tiles(state, config, sites, places[i : i + 1], [t]))
        for i, t in enumerate([5.0, 15.0, 5.0])
    ]
    assert len(together) == 3
    for tile, single in zip(together, alone, strict=True):
        np.testing.assert_allclose(tile.probability, single.probability, atol=1e-5)
        np.testing.assert_array_equal(tile.truth, single.truth)


def test_a_network_of_heights_has_decisions_and_no_calibration(trained):
    config = replace(read_record(trained).config, model_name="unet_regression", loss_type="huber")
    sites = load_sites(config)
    places = np.asarray(create_data(sites, config).test.places)
    examination = examine(create_state(create_model_from_config(config), config), config, sites, places)
    assert examination.calibration is None
    assert examination.model.sum() > 0
    # One height serves both thresholds: what is below 5 m is below 15 m.
    low, high = examination.predicted
    assert not (low & ~high).any()


def test_baselines_see_the_same_pixels(evidence, trained):
    baselines = score_baselines(evidence.sites, evidence.examination.places, read_record(trained).config)
    assert baselines["all_gap"]["n_pixels"] == evidence.examination.model.sum()


def test_scores_that_do_not_agree_with_the_network_are_told(run):
    record = read_record(run)
    record.scores["model"]["iou"] += 0.2
    (sentence,) = gather(record).missing
    assert "recorded" in sentence


def test_scores_are_counted_anew_where_the_run_has_none(run, scores):
    (run / "test_metrics.json").unlink()
    evidence = gather(read_record(run))
    assert any("counted anew" in sentence for sentence in evidence.missing)
    assert evidence.scores["model"]["iou"] == pytest.approx(scores["model"]["iou"])
    assert evidence.scores["grey_opening"]["iou"] == pytest.approx(scores["grey_opening"]["iou"])
