import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit
from sklearn import metrics as sk

from forestgaps_jax.metrics import (
    ConfusionCounts,
    ProbabilityHistogram,
    average_precision,
    best_cut,
    confusion_metrics,
    precision_recall_curve,
    summarize_counts,
    summarize_curves,
)

SHAPE = (4, 16, 16, 1)
BINS = 1024

update = jax.jit(lambda histogram, *args, **kwargs: histogram.update(*args, **kwargs))


def pixels(seed, gap=0.4, skill=1.5, spread=2.0):
    """Random logits that know something of a random truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random(SHAPE) < gap
    return rng.normal(np.where(truth, skill, -skill), spread).astype(np.float32), truth


def histogram_of(logits, truth, **kwargs):
    kwargs = {name: jnp.asarray(value) for name, value in kwargs.items()}
    return update(ProbabilityHistogram.zeros(1), jnp.asarray(logits), jnp.asarray(truth), **kwargs)


def bins_of(logits):
    """The bin of each pixel, in float64: 32 a logit, those at an edge below it."""
    edges = np.linspace(-16, 16, BINS, endpoint=False)[1:]
    return np.searchsorted(edges, logits.astype(float), side="left")


def bounds_of_average_precision(logits, truth):
    """Recall weighted by the lowest, and the highest, precision that any order within a bin can reach."""
    edges = [(truth & (b := bins_of(logits) == k), ~truth & b) for k in range(BINS - 1, -1, -1)]
    tp = fp = low = high = 0
    for gaps, others in ((np.count_nonzero(g), np.count_nonzero(o)) for g, o in edges):
        if gaps:
            low += gaps * (tp + 1) / (tp + 1 + fp + others)
            high += gaps * (tp + gaps) / (tp + gaps + fp)
        tp, fp = tp + gaps, fp + others
    return low / tp, high / tp


CASES = {
    "balanced": {},
    "rare": {"gap": 0.02},
    "all but all": {"gap": 0.98},
    "blind": {"skill": 0.0},
    "wrong": {"skill": -1.5},
    "sharp": {"skill": 12.0},
    "vague": {"skill": 0.2, "spread": 0.3},
    "rare and sure": {"gap": 0.02, "skill": 8.0, "spread": 6.0},
}


@pytest.mark.parametrize("case", CASES)
def test_histogram_is_that_of_numpy(case):
    logits, truth = pixels(1, **CASES[case])
    found = histogram_of(logits, truth).to_numpy()
    for kind, mask in enumerate((~truth, truth)):
        expected = np.bincount(bins_of(logits)[mask], minlength=BINS)
        np.testing.assert_array_equal(found[0, kind], expected)


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_that_of_scikit_learn_on_binned_probabilities(case):
    logits, truth = pixels(2, **CASES[case])
    histogram = histogram_of(logits, truth)
    scores = np.repeat(np.tile(np.arange(BINS), 2), histogram.to_numpy().ravel())
    labels = np.repeat(np.repeat([0, 1], BINS), histogram.to_numpy().ravel())
    assert average_precision(histogram) == pytest.approx(sk.average_precision_score(labels, scores))


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_that_of_scikit_learn_within_what_a_bin_hides(case):
    logits, truth = pixels(3, **CASES[case])
    low, high = bounds_of_average_precision(logits, truth)
    exact = sk.average_precision_score(truth.ravel(), logits.ravel())
    found = average_precision(histogram_of(logits, truth))
    assert low - 1e-12 <= exact <= high + 1e-12
    assert low - 1e-12 <= found <= high + 1e-12
    assert found == pytest.approx(exact, abs=0.01)


def test_average_precision_of_ties_is_that_of_scikit_learn():
    rng = np.random.default_rng(4)
    truth = rng.random(SHAPE) < 0.3
    probability = np.where(truth, rng.choice([0.25, 0.5, 0.75], SHAPE), rng.choice([0.125, 0.25, 0.5], SHAPE))
    logits = logit(probability).astype(np.float32)
    expected = sk.average_precision_score(truth.ravel(), probability.ravel())
    assert average_precision(histogram_of(logits, truth)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "truth", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], [1, 0, 0, 0], 0.25),  # one probability for all
        ([50.0, 50.0, -50.0, -50.0], [1, 1, 0, 0], 1.0),
        ([-50.0, -50.0, 50.0, 50.0], [1, 1, 0, 0], 0.5),
        ([3.0, -3.0, 1.0, 0.0], [1, 1, 1, 1], 1.0),
        ([np.inf, -np.inf, np.inf, -np.inf], [1, 0, 1, 0], 1.0),
        ([-200.0, -200.0, -200.0, -200.0], [1, 0, 0, 0], 0.25),  # probability 0 in float32
    ],
)
def test_average_precision_of_degenerate_pixels(logits, truth, expected):
    histogram = histogram_of(np.float32([logits]), np.array([truth]))
    assert histogram.to_numpy().sum() == 4
    assert average_precision(histogram) == expected


def test_fault_09_empty_and_correct_is_nan_everywhere_on_the_curve():
    histogram = histogram_of(np.full((1, 4), -9.0, np.float32), np.zeros((1, 4)))
    assert math.isnan(average_precision(histogram))
    assert all(map(math.isnan, best_cut(histogram)))
    curve = precision_recall_curve(histogram)
    assert np.isnan(curve.recall).all()
    assert curve.precision[0] == 0.0  # all four are called gap there
    assert np.isnan(curve.precision[BINS // 2])


def test_curve_is_that_of_scikit_learn():
    logits, truth = pixels(5)
    curve = precision_recall_curve(histogram_of(logits, truth))
    precision, recall, cuts = sk.precision_recall_curve(truth.ravel(), bins_of(logits).ravel())
    np.testing.assert_allclose(curve.precision[cuts], precision[:-1], rtol=1e-12)
    np.testing.assert_allclose(curve.recall[cuts], recall[:-1], rtol=1e-12)
    np.testing.assert_allclose(logit(curve.cut[1:]), (np.arange(1, BINS) - BINS / 2) / 32, atol=1e-6)


def test_curve_at_one_half_is_what_the_confusion_counts_give():
    logits, truth = pixels(6)
    curve = precision_recall_curve(histogram_of(logits, truth))
    counts = ConfusionCounts.zeros(1).update(jnp.asarray(logits > 0), jnp.asarray(truth))
    metrics, middle = confusion_metrics(counts), BINS // 2
    assert curve.cut[middle] == 0.5
    assert (curve.precision[middle], curve.recall[middle]) == (metrics["precision"], metrics["recall"])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98), st.floats(-3, 3))
def test_best_cut_gives_what_it_says(seed, gap, skill):
    logits, truth = pixels(seed, gap, skill)
    histogram = histogram_of(logits, truth)
    cut, f1 = best_cut(histogram)
    found = expit(logits.astype(float)) > cut
    assert f1 == pytest.approx(sk.f1_score(truth.ravel(), found.ravel()))
    assert best_cut(histogram, "iou")[1] == pytest.approx(sk.jaccard_score(truth.ravel(), found.ravel()))
    assert best_cut(histogram, "iou")[0] == cut


@settings(max_examples=40)
@given(arrays(np.int64, (2, 2, 8), elements=st.integers(0, 6)), st.booleans())
def test_scores_of_any_histogram_are_those_of_scikit_learn_with_its_counts_as_weights(rows, empty):
    rows = rows * (1 - empty * np.array([0, 1]))[None, :, None]  # perhaps without a gap
    counts = rows.sum(axis=0)
    found, curve = average_precision(rows), precision_recall_curve(rows)
    assert (np.diff(curve.cut) > 0).all()
    if not counts[1].any():
        assert math.isnan(found)
        assert all(map(math.isnan, best_cut(rows)))
        return
    labels, scores = np.repeat([0, 1], 8), np.tile(np.arange(8), 2)
    expected = sk.average_precision_score(labels, scores, sample_weight=counts.ravel())
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0 < found <= 1 + 1e-12
    assert (np.diff(curve.recall) <= 0).all()
    assert curve.recall[0] == 1
    for cut in range(8):
        above = scores >= cut
        f1 = sk.f1_score(labels, above, sample_weight=counts.ravel(), zero_division=0)
        assert best_cut(rows)[1] >= f1 - 1e-12
    chosen = scores >= np.argmin(abs(curve.cut - best_cut(rows)[0]))
    best = sk.f1_score(labels, chosen, sample_weight=counts.ravel(), zero_division=0)
    assert best_cut(rows)[1] == pytest.approx(best, rel=1e-12)


def test_best_cut_is_the_best_of_all_that_can_be_tried():
    logits, truth = pixels(6, gap=0.2)
    found = [bins_of(logits) >= k for k in range(BINS)]
    tried = [2 * np.sum(f & truth) / (np.sum(f) + np.sum(truth)) for f in found]
    assert best_cut(histogram_of(logits, truth))[1] == pytest.approx(max(tried))


def test_of_equal_cuts_the_best_is_the_nearest_to_one_half():
    truth = np.arange(8).reshape(1, 8) >= 4
    cuts = [
        best_cut(histogram_of(np.where(truth, high, low).astype(np.float32), truth))
        for low, high in ((-5, 5), (-5, -2), (2, 5))
    ]
    assert cuts[0] == (0.5, 1.0)
    assert cuts[1] == (pytest.approx(expit(-2 - 1 / 32)), 1.0)
    assert cuts[2] == (pytest.approx(expit(2)), 1.0)


def test_summary_has_the_scores_of_all_and_of_each_threshold_that_has_pixels():
    logits, truth = pixels(7)
    group, valid = np.array([2, 0, 2, 3]), np.random.default_rng(7).random(SHAPE) < 0.7
    histogram = update(
        ProbabilityHistogram.zeros(4), *map(jnp.asarray, (logits, truth)), group=jnp.asarray(group),
        valid=jnp.asarray(valid),
    )  # fmt: skip
    summary = summarize_curves(histogram, (5, 10.0, 15.0))
    assert list(summary["threshold_metrics"]) == [5.0, 15.0]
    for rows, scores in (
        (slice(None), summary),
        (group == 0, summary["threshold_metrics"][5.0]),
        (group == 2, summary["threshold_metrics"][15.0]),
    ):
        known = valid[rows]
        alone = histogram_of(logits[rows], truth[rows], valid=known)
        assert scores["pr_auc"] == average_precision(alone)
        assert (scores["best_cut"], scores["best_cut_f1"]) == best_cut(alone)
        assert scores["best_cut_iou"] == best_cut(alone, "iou")[1]
        exact = sk.average_precision_score(truth[rows][known], logits[rows][known])
        assert scores["pr_auc"] == pytest.approx(exact, abs=0.01)


def test_thresholds_of_curves_are_those_of_the_counts():
    """A tile without a valid pixel is no sample for either, so that the two can be merged."""
    logits, truth = map(jnp.asarray, pixels(8))
    group, valid = jnp.array([0, 1, 0, 2]), jnp.ones(SHAPE, bool).at[1].set(False)
    histogram = update(ProbabilityHistogram.zeros(3), logits, truth, group=group, valid=valid)
    counts = ConfusionCounts.zeros(3).update(logits > 0, truth, group=group, valid=valid)
    of_counts = summarize_counts(counts, (5.0, 10.0))["threshold_metrics"]
    assert list(summarize_curves(histogram, (5.0, 10.0))["threshold_metrics"]) == list(of_counts) == [5.0]


def test_merging_is_counting_together():
    parts = [pixels(seed) for seed in (9, 10)]
    one, other = (histogram_of(*part) for part in parts)
    both = histogram_of(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    np.testing.assert_array_equal(one.merge(other).to_numpy(), both.to_numpy())
    again = update(one, *map(jnp.asarray, parts[1]))
    np.testing.assert_array_equal(again.to_numpy(), both.to_numpy())


def test_fault_09_counts_are_exact_past_2_to_the_24_in_a_bin():
    histogram = histogram_of(np.full((1, 2), 99.0, np.float32), np.array([[1, 0]]))
    for _ in range(40):
        histogram = histogram.merge(histogram)
    histogram = update(histogram, jnp.full((1, 2), 99.0), jnp.asarray([[1, 0]]))
    assert histogram.to_numpy()[0, :, -1].tolist() == [2**40 + 1] * 2


def test_logits_without_a_number_count_as_they_do_in_the_confusion():
    logits = np.float32([[np.nan, np.nan, 3.0]])
    found = histogram_of(logits, np.array([[1, 0, 1]])).to_numpy()
    assert found[0, :, 0].tolist() == [1, 1]
    hidden = histogram_of(logits, np.array([[1, 0, 1]]), valid=np.array([[False, False, True]]))
    assert hidden.to_numpy().sum() == 1


@pytest.mark.parametrize("wrong", ["targets", "valid"])
def test_shapes_that_would_broadcast_are_refused(wrong):
    logits, truth = map(jnp.asarray, pixels(11))
    given = {"targets": truth, "valid": truth}
    given[wrong] = given[wrong][..., 0]
    with pytest.raises(ValueError, match=rf"{wrong} have shape \(4, 16, 16\), logits \(4, 16, 16, 1\)"):
        ProbabilityHistogram.zeros(1).update(logits, given["targets"], valid=given["valid"])


@pytest.mark.parametrize("bins", [1, 511, 0])
def test_bins_that_do_not_part_at_one_half_are_refused(bins):
    with pytest.raises(ValueError, match=f"bins = {bins}: must be an even number"):
        ProbabilityHistogram.zeros(1, bins)


def test_another_metric_of_the_best_cut_is_refused(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    with pytest.raises(ValueError, match="'mcc': must be 'f1' or 'iou'"):
        best_cut(np.ones((2, 4), int), "mcc")
