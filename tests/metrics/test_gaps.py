import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.metrics import GapScores, boundary_counts, boundary_f1, object_counts

SHAPE = (14, 17)


def tile(seed, gap=0.5):
    """Random blobs, a prediction that is near them, and what is known."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.random((7, 9)) < gap, np.ones((2, 2), bool))[: SHAPE[0], : SHAPE[1]]
    predicted = np.roll(truth, rng.integers(-1, 2, 2), axis=(0, 1)) ^ (rng.random(SHAPE) < 0.05)
    return predicted, truth, rng.random(SHAPE) < 0.9


def outline(gap, known):
    """Gap pixels with a known pixel of no gap on one of their sides: by looking at each."""
    inside = lambda r, c: 0 <= r < SHAPE[0] and 0 <= c < SHAPE[1]  # noqa: E731
    return {
        (r, c)
        for r, c in zip(*np.nonzero(gap & known), strict=True)
        for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if inside(r + dr, c + dc) and known[r + dr, c + dc] and not gap[r + dr, c + dc]
    }


def near(points, others, tolerance):
    return sum(any(math.dist(p, o) <= tolerance for o in others) for p in points)


def objects(gap):
    """Sets of pixels that touch by sides or corners, by flooding."""
    left, found = set(zip(*np.nonzero(gap), strict=True)), []
    while left:
        blob = todo = {left.pop()}
        while todo:
            todo = {(r + i, c + j) for r, c in todo for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left, blob = left - todo, blob | todo
        found.append(blob)
    return found


def iou(one, other):
    return len(one & other) / len(one | other)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 1.5, 2, 5]), st.sampled_from([0.1, 0.5, 0.9]))
def test_outlines_are_matched_as_by_looking_at_each_pixel(seed, tolerance, gap):
    predicted, truth, known = tile(seed, gap)
    ours, theirs = outline(predicted, known), outline(truth, known)
    expected = [near(ours, theirs, tolerance), len(ours), near(theirs, ours, tolerance), len(theirs)]
    assert boundary_counts(predicted, truth, tolerance, known).tolist() == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 8]), st.sampled_from([0.1, 0.3, 0.6]))
def test_gaps_are_matched_as_by_comparing_each_pair(seed, min_area, gap):
    predicted, truth, known = tile(seed, gap)
    ours, theirs = objects(predicted & known), objects(truth & known)
    large = [[o for o in each if len(o) >= min_area] for each in (ours, theirs)]
    matched = sum(any(iou(o, t) > 0.5 for t in theirs) for o in large[0])
    found = sum(any(iou(t, o) > 0.5 for o in ours) for t in large[1])
    expected = [matched, len(large[0]), found, len(large[1])]
    assert object_counts(predicted, truth, min_area, known).tolist() == expected
    if min_area == 1:
        assert matched == found  # no gap has two matches


def square(top, left, size, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_edges_of_the_tile_and_of_unknown_ground_are_no_outline():
    everything, corner = np.ones(SHAPE, bool), square(0, 0, 5)
    assert boundary_counts(everything, everything, 2).tolist() == [0, 0, 0, 0]
    assert boundary_counts(corner, corner, 0).tolist() == [9, 9, 9, 9]
    known = ~square(0, 5, 12)  # all to the right of the corner
    assert boundary_counts(corner, corner, 0, known).tolist() == [5, 5, 5, 5]
    assert math.isnan(boundary_f1(everything, everything))


def test_a_shifted_outline_is_right_within_the_tolerance_only():
    truth, predicted = square(4, 4, 5), square(4, 6, 5)
    assert boundary_f1(predicted, truth, 2) == 1.0
    assert boundary_f1(predicted, truth, 1) < 1.0
    assert boundary_f1(predicted, truth, 0) == pytest.approx(6 / 16)


def test_one_side_alone_scores_nothing():
    gap, nothing = square(4, 4, 5), np.zeros(SHAPE, bool)
    assert boundary_f1(gap, nothing) == boundary_f1(nothing, gap) == 0.0
    scores = GapScores()
    scores.update(nothing[None], gap[None])
    result = scores.compute()
    assert (result["object_recall"], result["object_f1"], result["boundary_recall"]) == (0.0, 0.0, 0.0)
    assert math.isnan(result["object_precision"])
    assert math.isnan(result["boundary_precision"])


def test_gaps_that_touch_by_a_corner_are_one():
    truth = square(2, 2, 3) | square(5, 5, 3)
    assert object_counts(truth, truth).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("size", "found"), [(20, False), (19, True)])
def test_half_of_the_common_area_is_no_match(size, found):
    truth, predicted = np.zeros((1, 40), bool), np.zeros((1, 40), bool)
    truth[0, :10] = predicted[0, :size] = True
    assert object_counts(predicted, truth).tolist() == [found, 1, found, 1]


def test_a_small_gap_serves_as_a_match_without_being_counted():
    truth, predicted = square(2, 2, 3), square(2, 2, 3)
    truth[4, 4] = False  # 8 pixels against 9
    assert object_counts(predicted, truth, min_area=9).tolist() == [1, 1, 0, 0]


def batch(seeds=range(6)):
    return tuple(np.stack(each) for each in zip(*map(tile, seeds), strict=True))


def test_tiles_are_added_up_before_any_ratio_and_apart_by_threshold():
    predicted, truth, known = batch()
    group = np.array([0, 2, 2, 0, 3, 2])
    scores = GapScores(tolerance=1, min_area=3)
    for part in (slice(0, 2), slice(2, 6)):
        scores.update(predicted[part][..., None], truth[part], known[part][..., None], group[part])
    result = scores.compute((5, 10, 15))
    assert list(result["threshold_metrics"]) == [5.0, 15.0]
    rows = {None: result, 0: result["threshold_metrics"][5.0], 2: result["threshold_metrics"][15.0]}
    for row, found in rows.items():
        tiles = [i for i in range(6) if row is None or group[i] == row]
        boundary = sum(boundary_counts(predicted[i], truth[i], 1, known[i]) for i in tiles)
        gaps = sum(object_counts(predicted[i], truth[i], 3, known[i]) for i in tiles)
        for kind, (matched, ours, hit, theirs) in (("boundary", boundary), ("object", gaps)):
            precision, recall = matched / ours, hit / theirs
            assert found[f"{kind}_precision"] == precision
            assert found[f"{kind}_recall"] == recall
            assert found[f"{kind}_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
        assert found["gaps_found"] == gaps[2]
        assert found["gaps_missed"] == gaps[3] - gaps[2]
        assert found["gaps_false"] == gaps[1] - gaps[0]
        assert type(found["gaps_found"]) is int


def test_arrays_of_the_device_and_masks_of_numbers_count_the_same():
    predicted, truth, known = batch()
    one, other = GapScores(), GapScores()
    one.update(predicted, truth, known)
    other.update(*map(jnp.asarray, (predicted, truth.astype(np.float32), known)), jnp.zeros(6, int))
    assert one.compute() == other.compute()


def test_fault_09_empty_and_correct_is_nan_everywhere_for_shapes():
    nothing = np.zeros((1, 8, 8), bool)
    scores = GapScores()
    for _ in range(2):
        result = scores.compute([5.0])
        undefined = {
            name for name, value in result.items() if name[:4] != "gaps" and isinstance(value, float)
        }
        assert undefined == {
            f"{kind}_{s}" for kind in ("boundary", "object") for s in ("precision", "recall", "f1")
        }
        assert all(math.isnan(result[name]) for name in undefined)
        assert [result[f"gaps_{kind}"] for kind in ("found", "missed", "false")] == [0, 0, 0]
        scores.update(nothing, nothing)
    assert list(scores.compute([5.0])["threshold_metrics"]) == [5.0]


def test_tiles_without_a_known_pixel_are_no_tiles():
    scores = GapScores()
    scores.update(np.ones((1, 8, 8), bool), np.zeros((1, 8, 8)), np.zeros((1, 8, 8), bool))
    assert scores.compute([5.0])["threshold_metrics"] == {}


def test_wrong_input_is_refused():
    scores, mask = GapScores(), np.zeros((2, 8, 8), bool)
    with pytest.raises(TypeError, match=r"predicted is float64: must be bool, such as probabilities > 0\.5"):
        scores.update(mask.astype(float), mask)
    with pytest.raises(ValueError, match=r"truth are of \(1, 8, 8\) pixels, predicted of \(2, 8, 8\)"):
        scores.update(mask, mask[:1])
    with pytest.raises(ValueError, match=r"group has shape \(3,\): must be \(2,\), one a sample"):
        scores.update(mask, mask, None, [0, 0, 1])
    assert scores.compute()["gaps_false"] == 0


@pytest.mark.parametrize("wrong", [{"tolerance": -1}, {"min_area": 0}, {"tolerance": math.nan}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be 0 or more, and 1 or more, pixels"):
        GapScores(**wrong)
