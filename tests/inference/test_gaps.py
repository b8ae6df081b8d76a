import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage

from forestgaps_jax.data import read_dsm
from forestgaps_jax.inference import extract_gaps, gap_statistics
from forestgaps_jax.types import Grid

# ForestGapR's README (github.com/carlos-alberto-silva/ForestGapR), gaps of ALS_CHM_DUC with height <= 10 m
# and an area of 5 to 1000 m2: gap_area chm_max chm_min chm_mean chm_sd chm_gini chm_range, by gap_id.
PUBLISHED = """
34 9.22 1.09 5.12 2.61 0.30 8.13;  6 8.17 6.06 7.40 0.74 0.06 2.11;  5 9.96 7.42 8.85 1.23 0.08 2.54
32 9.91 4.42 8.12 1.69 0.12 5.49; 11 9.83 6.23 8.48 1.09 0.07 3.60; 44 9.72 1.92 7.31 1.60 0.12 7.80
 6 9.88 8.81 9.49 0.40 0.02 1.07;  6 9.07 3.10 7.02 2.96 0.22 5.97; 10 9.52 2.86 8.03 2.22 0.13 6.66
18 9.90 2.74 5.06 2.18 0.23 7.16; 13 9.91 1.75 5.47 2.94 0.31 8.16; 10 9.92 3.75 7.77 2.27 0.16 6.17
66 9.94 0.99 5.31 2.91 0.32 8.95;  7 10.0 5.83 7.41 1.53 0.12 4.17; 12 9.65 5.61 7.97 1.43 0.10 4.04
 7 8.64 5.64 7.67 0.97 0.07 3.00; 21 8.42 0.40 6.02 2.23 0.20 8.02;  6 7.39 3.37 5.03 1.82 0.21 4.02
 5 9.07 4.91 7.74 1.65 0.12 4.16; 36 9.90 2.10 6.62 2.45 0.21 7.80;  5 9.71 8.43 9.19 0.57 0.04 1.28
12 9.83 7.42 8.39 0.85 0.06 2.41; 15 9.25 7.81 8.56 0.48 0.03 1.44; 27 9.43 0.26 2.37 2.55 0.56 9.17
 5 4.54 2.43 3.78 0.80 0.12 2.11;  7 9.98 6.34 8.40 1.07 0.07 3.64; 25 9.76 3.78 7.67 1.13 0.07 5.98
 6 9.49 4.92 7.23 1.56 0.13 4.57; 22 9.76 3.78 5.96 1.97 0.18 5.98;  6 5.73 2.69 4.46 1.28 0.17 3.04
 7 9.41 7.72 8.44 0.56 0.04 1.69; 57 9.89 1.97 5.70 2.62 0.26 7.92; 38 9.68 0.25 4.58 2.07 0.24 9.43
 8 9.83 4.88 6.55 1.54 0.13 4.95;  6 9.66 8.26 9.16 0.48 0.03 1.40
"""
COLUMNS = ("gap_area", "chm_max", "chm_min", "chm_mean", "chm_sd", "chm_gini", "chm_range")

masks = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).uniform(size=drawn[:2]) < drawn[3]
)


@pytest.fixture
def ducke(shared_data):
    return read_dsm(shared_data / "chm_only" / "ALS_CHM_DUC.tif")


def test_the_published_table_of_forestgapr_is_met_row_by_row(ducke):
    chm, grid = ducke
    gaps = extract_gaps(chm, grid, threshold=10.0, inclusive=True, min_area=5, max_area=1000)
    published = np.array([row.split() for row in PUBLISHED.strip().replace(";", "\n").splitlines()], float)
    assert published.shape == (35, 7)
    assert len(gaps) == 35
    assert gap_statistics(gaps)["gap_area"] == 601
    found = np.array([gaps.table[column] for column in COLUMNS]).T
    # Rounded to 0.01; R and NumPy may round a half in another way.
    np.testing.assert_allclose(found, published, atol=0.005 + 1e-5)


def test_two_pixels_there_are_as_high_as_the_threshold(ducke):
    chm, grid = ducke
    found = [extract_gaps(chm, grid, threshold=10.0, inclusive=inclusive) for inclusive in (True, False)]
    assert [gaps.table["gap_area"].sum() for gaps in found] == [763, 761]


@given(masks)
def test_each_gap_is_measured_as_alone_in_the_raster(mask):
    gaps = extract_gaps(mask, 0.5)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    np.testing.assert_array_equal(gaps.labels, labels)
    assert len(gaps) == count
    for row in gaps.table:
        alone = np.pad(labels == row["gap_id"], 1)
        assert row["gap_area"] == alone.sum() * 0.25
        sides = sum(np.count_nonzero(np.diff(alone.astype(int), axis=axis)) for axis in (0, 1))
        assert row["perimeter"] == sides * 0.5
        assert row["shape_index"] == pytest.approx(sides * 0.5 / math.sqrt(4 * math.pi * alone.sum() * 0.25))
        y, x = ndimage.center_of_mass(alone[1:-1, 1:-1])
        assert (row["x"], row["y"]) == (pytest.approx(0.5 * (x + 0.5)), pytest.approx(-0.5 * (y + 0.5)))
        assert row["at_edge"] == bool(alone[[1, -2]].any() or alone[:, [1, -2]].any())


@given(masks)
@settings(max_examples=30)
def test_masks_of_all_kinds_are_read_alike(mask):
    unknown = np.random.default_rng(0).uniform(size=mask.shape) < 0.2
    ways = [
        extract_gaps(mask, 2.0, valid=~unknown),
        extract_gaps(np.where(unknown, 255, mask).astype(np.uint8), 2.0),
        extract_gaps(np.where(unknown, np.nan, mask), 2.0),
        extract_gaps(np.where(unknown, np.nan, np.where(mask, 3.0, 20.0)), 2.0, threshold=5.0),
    ]
    for gaps in ways:
        np.testing.assert_array_equal(gaps.labels, ways[0].labels)
        assert gaps.known_area == 4 * np.count_nonzero(~unknown)
        assert gaps.table[list(ways[0].table.dtype.names)].tolist() == ways[0].table.tolist()


def test_a_gap_beside_unknown_ground_may_be_larger():
    mask = np.zeros((7, 9), np.uint8)
    mask[2, 2] = mask[4, 6] = 1
    mask[5, 7] = 255
    assert extract_gaps(mask).table["at_edge"].tolist() == [False, True]


@pytest.mark.parametrize("resolution", [0.3, 0.5, 1.0, 1.7])
def test_areas_as_large_as_the_limits_are_in(resolution):
    mask = np.zeros((4, 40), bool)
    for pixels, column in ((4, 0), (5, 8), (10, 16), (11, 28)):
        mask[0, column : column + pixels] = True
    pixel = resolution**2
    gaps = extract_gaps(mask, resolution, min_area=5 * pixel, max_area=10 * pixel)
    assert gaps.pixels.tolist() == [5, 10]
    assert np.unique(gaps.labels).tolist() == [0, 1, 2]
    assert (gaps.labels[0, 8], gaps.labels[0, 16], gaps.labels[0, 28]) == (1, 2, 0)


def test_heights_are_those_of_numpy_gap_by_gap():
    rng = np.random.default_rng(3)
    mask, chm = rng.uniform(size=(30, 40)) < 0.3, rng.uniform(-1, 20, (30, 40)).astype(np.float32)
    chm[rng.uniform(size=chm.shape) < 0.3] = np.nan
    gaps = extract_gaps(mask, 1.0, chm=chm)
    assert len(gaps) > 40
    for row in gaps.table:
        heights = chm[(gaps.labels == row["gap_id"]) & np.isfinite(chm)].astype(float)
        known, several = len(heights) > 0, len(heights) > 1
        differences = np.abs(np.subtract.outer(np.maximum(heights, 0), np.maximum(heights, 0))).sum()
        expected = {
            "chm_max": heights.max() if known else np.nan,
            "chm_min": heights.min() if known else np.nan,
            "chm_mean": heights.mean() if known else np.nan,
            "chm_range": np.ptp(heights) if known else np.nan,
            "chm_sd": heights.std(ddof=1) if several else np.nan,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, nan_ok=True)
        total = np.maximum(heights, 0).sum()
        # Mean absolute difference over twice the mean.
        n = len(heights)
        gini = differences / (n * (n - 1)) / (2 * total / n) if several and total else np.nan
        assert row["chm_gini"] == pytest.approx(gini, nan_ok=True)


def test_a_raster_without_gap_has_a_table_with_all_columns():
    gaps = extract_gaps(np.full((5, 6), 30.0, np.float32), 1.0, threshold=5.0)
    assert len(gaps) == 0
    assert not gaps.labels.any()
    assert set(COLUMNS) < set(gaps.table.dtype.names)


def test_blocks_of_any_size_count_the_same(monkeypatch):
    mask = np.random.default_rng(5).uniform(size=(37, 11)) < 0.4
    whole = extract_gaps(mask)
    monkeypatch.setattr("forestgaps_jax.inference.gap_shapes._BLOCK", 40)
    assert extract_gaps(mask).table.tolist() == whole.table.tolist()


BOOL, HEIGHTS = np.zeros((3, 3), bool), np.zeros((3, 3), np.float32)


@pytest.mark.parametrize(
    ("raster", "options", "message"),
    [
        (np.full((3, 3), 7.5), {}, "this has 7.5; canopy heights need a threshold"),
        (np.full((3, 3), 2, np.uint8), {}, "this has 2"),
        (BOOL, {"threshold": 5.0}, "threshold was given with a mask"),
        (HEIGHTS, {"threshold": math.nan}, "threshold = nan"),
        (HEIGHTS, {"threshold": 5.0, "chm": HEIGHTS}, "leave chm"),
        (BOOL, {"inclusive": True}, "inclusive is about a threshold"),
        (BOOL, {"min_area": 9.0, "max_area": 5.0}, "min_area = 9.0, max_area = 5.0"),
        (BOOL, {"min_area": -1.0}, "min_area = -1.0"),
        (BOOL, {"min_area": math.nan}, "min_area = nan"),
        (BOOL, {"resolution": 0.0}, "resolution = 0.0"),
        (BOOL, {"resolution": Grid(math.nan)}, "resolution = nan"),
        (BOOL, {"valid": np.ones((2, 3), bool)}, "valid has shape"),
        (BOOL, {"chm": np.ones((2, 3))}, "chm has shape"),
    ],
)
def test_what_cannot_be_is_refused(raster, options, message, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    with pytest.raises(ValueError, match=message):
        extract_gaps(raster, **options)
