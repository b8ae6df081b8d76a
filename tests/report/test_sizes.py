from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from forestgaps_jax.report.examination import Examination
from forestgaps_jax.report.sizes import at_least, gap_sizes, ground_by_site
from forestgaps_jax.types import Grid, Site

RNG = np.random.default_rng(0)


def examination(resolutions=(2.0,)):
    """Sites of 8 x 12 px with two test tiles of 4 px side by side, at one threshold."""
    sites, places = [], []
    for index, resolution in enumerate(resolutions):
        chm = RNG.uniform(0, 20, (8, 12)).astype(np.float32)
        chm[0, 0] = np.nan
        sites.append(Site(f"site-{index}", np.zeros((8, 12), np.float32), chm, Grid(resolution)))
        places += [(index, 0, 0), (index, 0, 4)]
    places = np.array(places, np.int32)
    predicted = RNG.uniform(size=(1, len(places), 4, 4)) < 0.4
    cells = np.zeros((1, len(places), 4), np.int64)
    return Examination(sites, places, 4, (5.0,), predicted, cells, cells, None)


def test_tiles_are_put_together_on_their_ground():
    given = examination()
    ((truth, predicted, valid, grid),) = ground_by_site(given, 0)
    np.testing.assert_array_equal(predicted[:4, :8], np.hstack(given.predicted[0]))
    assert not valid[4:].any()
    assert not valid[:, 8:].any()
    assert valid[:4, :8].sum() == 31
    np.testing.assert_array_equal(truth, given.sites[0].chm < 5)
    assert grid.resolution == 2.0


def test_gaps_are_those_of_the_ground_put_together():
    given = examination()
    ((_, kinds),) = gap_sizes(given)["rows"]
    ((truth, predicted, valid, _),) = ground_by_site(given, 0)
    for (kind, number, per_ha, median, mean, largest, _), gap in zip(
        kinds, (truth & valid, predicted & valid), strict=True
    ):
        labels, expected = ndimage.label(gap, np.ones((3, 3)))
        areas = 4.0 * np.bincount(labels.ravel())[1:]
        assert kind in ("truth", "prediction")
        assert int(number) == expected
        assert float(per_ha.replace(",", "")) == pytest.approx(expected / (31 * 4) * 1e4, abs=0.05)
        assert [float(median), float(mean), float(largest)] == pytest.approx(
            [np.median(areas), areas.mean(), areas.max()], abs=0.5
        )


def test_pixels_of_several_sizes_have_no_common_exponent():
    ((_, kinds),) = gap_sizes(examination((1.0, 2.0)))["rows"]
    assert [kind[-1] for kind in kinds] == ["–", "–"]


def test_ground_without_a_gap_is_a_row_of_nothing():
    given = examination()
    given = replace(given, predicted=np.zeros_like(given.predicted))
    ((_, (_, prediction)),) = gap_sizes(given)["rows"]
    assert prediction == ("prediction", "0", "0.0", "–", "–", "–", "–")


def test_ground_without_any_gap_has_a_chart_of_nothing():
    given = replace(examination(), thresholds=(1e-6,))
    given = replace(given, predicted=np.zeros_like(given.predicted))
    result = gap_sizes(given)
    assert "below 1e-06 m" in result["charts"][0]
    assert [kind[1] for kind in result["rows"][0][1]] == ["0", "0"]


def test_few_gaps_have_no_exponent():
    few = np.zeros((1, 2, 4, 4), bool)
    few[0, :, 0, 1] = True
    ((_, (_, prediction)),) = gap_sizes(replace(examination(), predicted=few))["rows"]
    assert (prediction[1], prediction[-1]) == ("2", "–")


def test_at_least_counts_what_is_as_large_or_larger():
    areas = RNG.integers(1, 9, 40).astype(float)
    sizes, counts = at_least(areas)
    assert counts.tolist() == [float((areas >= size).sum()) for size in sizes]
    assert set(sizes) == set(areas)
