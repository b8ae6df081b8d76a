"""Counts of parts, merged in any grouping and order, against counting everything at once, in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from forestgaps_jax.metrics import (
    ConfusionCounts,
    GapScores,
    ProbabilityHistogram,
    RegressionMetrics,
    RegressionSums,
    SegmentationMetrics,
    ThresholdMetrics,
    boundary_counts,
    object_counts,
)

TILES, GROUPS, BINS = 5, 3, 16
SHAPE = (TILES, 6, 7, 1)
SEEDS = st.integers(0, 2**32 - 1)
# The part that each tile is counted with; a part may be empty.
PARTS = st.lists(st.integers(0, 2), min_size=TILES, max_size=TILES).map(np.array)


def tiles(seed, known=0.7):
    """Logits, truth, rows and valid pixels of random tiles, one of them perhaps all unknown."""
    rng = np.random.default_rng(seed)
    truth = rng.random(SHAPE) < rng.random()
    logits = rng.normal(2.0 * truth - 1, rng.choice([0.5, 5.0, 50.0]), SHAPE).astype(np.float32)
    valid = rng.random(SHAPE) < known
    valid[rng.integers(TILES)] &= rng.random() < 0.7
    return logits, truth, rng.integers(0, GROUPS, TILES), valid


def rows_of(group, valid, kinds, count):
    """How many valid pixels there are of each row and kind."""
    rows = np.broadcast_to(group[:, None, None, None], SHAPE)[valid]
    return np.bincount(rows * count + kinds[valid], minlength=GROUPS * count).reshape(GROUPS, count)


def add_and_merge(kind):
    """Compiled ways to add tiles and to merge; what is not of a part is not valid there."""
    add = jax.jit(lambda counts, *given, **masks: counts.update(*given, **masks))
    return add, jax.jit(kind.merge)


ADDERS = {kind: add_and_merge(kind) for kind in (ConfusionCounts, ProbabilityHistogram, RegressionSums)}
EMPTY = {
    ConfusionCounts: ConfusionCounts.zeros(GROUPS),
    ProbabilityHistogram: ProbabilityHistogram.zeros(GROUPS, BINS),
    RegressionSums: RegressionSums.zeros(GROUPS),
}


def every_way(kind, given, group, valid, part):
    """The counts of three parts, put together in every order and grouping, one after another, and at once."""
    (add, merge), nothing = ADDERS[kind], EMPTY[kind]
    masks = [valid & (part == number)[:, None, None, None] for number in range(3)]
    group = jnp.asarray(group)
    given = [jnp.asarray(x) for x in given]
    parts = [add(nothing, *given, group=group, valid=jnp.asarray(mask)) for mask in masks]
    for a, b, c in itertools.permutations(parts):
        yield merge(merge(a, b), c)
        yield merge(a, merge(b, merge(nothing, c)))
    running = nothing
    for mask in masks:
        running = add(running, *given, group=group, valid=jnp.asarray(mask))
    yield running
    yield add(nothing, *given, group=group, valid=jnp.asarray(valid))


@settings(max_examples=15)
@given(SEEDS, PARTS)
def test_confusion_counts_are_those_of_all_at_once(seed, part):
    logits, truth, group, valid = tiles(seed)
    cell = np.select([(logits > 0) & truth, (logits > 0) & ~truth, truth], [0, 1, 2], 3)
    expected = rows_of(group, valid, cell, 4)
    samples = np.bincount(group[valid.any(axis=(1, 2, 3))], minlength=GROUPS)
    for counts in every_way(ConfusionCounts, (logits > 0, truth), group, valid, part):
        np.testing.assert_array_equal(counts.to_numpy(), expected)
        np.testing.assert_array_equal(counts.samples, samples)


@settings(max_examples=15)
@given(SEEDS, PARTS, st.lists(st.floats(width=32, allow_subnormal=False), max_size=20))
def test_histograms_are_those_of_all_at_once_whatever_the_logits(seed, part, strange):
    logits, truth, group, valid = tiles(seed)
    logits.flat[: len(strange)] = strange
    edges = np.linspace(-16, 16, BINS, endpoint=False)[1:]
    bin_index = np.searchsorted(edges, np.nan_to_num(logits.astype(float), nan=-np.inf), side="left")
    expected = rows_of(group, valid, BINS * truth + bin_index, 2 * BINS).reshape(GROUPS, 2, BINS)
    assert expected[..., BINS // 2 :].sum() == np.count_nonzero(logits[valid] > 0)
    for histogram in every_way(ProbabilityHistogram, (logits, truth), group, valid, part):
        np.testing.assert_array_equal(histogram.to_numpy(), expected)


@settings(max_examples=15)
@given(SEEDS, PARTS, st.floats(0, 3000), st.sampled_from([0.0, 0.1, 8.0]), st.floats(0, 20))
def test_sums_of_heights_are_those_of_all_at_once(seed, part, mean, spread, error):
    _, _, group, valid = tiles(seed)
    rng = np.random.default_rng(seed)
    truth = rng.normal(mean, spread, SHAPE).astype(np.float32)
    guess = (truth + rng.normal(0, error, SHAPE)).astype(np.float32)
    given = [np.where(valid, x, np.nan) for x in (guess, truth)]
    rows = np.broadcast_to(group[:, None, None, None], SHAPE)
    for sums in every_way(RegressionSums, given, group, valid, part):
        for row, found in enumerate(sums.to_numpy()):
            here = valid & (rows == row)
            y, e = truth[here].astype(float), (guess.astype(float) - truth)[here]
            rounding = 1e-7 * y.size * (mean + 50)
            assert found[0] == y.size
            np.testing.assert_allclose(
                found[1:5], [e.sum(), abs(e).sum(), (e**2).sum(), y.sum()], rtol=1e-5, atol=rounding
            )
            assert found[5] == pytest.approx(y.size * np.var(y) if y.size else 0, rel=1e-4, abs=rounding)


# Fed by hand


@settings(max_examples=10)
@given(SEEDS, st.permutations(range(TILES)))
def test_metrics_fed_tile_by_tile_in_any_order_are_those_of_all_tiles(seed, order):
    logits, truth, group, valid = tiles(seed)
    heights = np.array([5.0, 10.0, 20.0])[group]
    together, apart = (ThresholdMetrics([5, 10, 20], from_logits=True) for _ in range(2))
    whole = SegmentationMetrics(from_logits=True)
    together.update(logits, truth, 0.5, heights, valid)
    for one in order:
        tile = slice(one, one + 1)
        apart.update(logits[tile], truth[tile], 0.5, heights[tile], valid[tile])
        whole.update(logits[tile], truth[tile], valid[tile])
    matrices = apart.compute_confusion_matrix()
    assert str(matrices) == str(together.compute_confusion_matrix())  # as text NaN equals NaN
    assert set(matrices) == set(heights[valid.any(axis=(1, 2, 3))])
    rows = {height: valid & (heights == height)[:, None, None, None] for height in matrices} | {0: valid}
    for height, here in rows.items():
        found = matrices[height] if height else whole.compute_confusion_matrix()
        if here.any():
            expected = sk.confusion_matrix(truth[here], logits[here] > 0, labels=[True, False])
            np.testing.assert_array_equal([[found["tp"], found["fn"]], [found["fp"], found["tn"]]], expected)


@settings(max_examples=10)
@given(SEEDS, st.permutations(range(TILES)))
def test_errors_of_heights_fed_tile_by_tile_in_any_order_are_those_of_all_tiles(seed, order):
    logits, _, _, valid = tiles(seed)
    valid[0, 0, 0], truth = True, np.random.default_rng(seed).uniform(0, 40, SHAPE).astype(np.float32)
    metrics = RegressionMetrics()
    for one in order:
        metrics.update(*(x[one : one + 1] for x in (truth + logits, truth, valid)))
    found, y, guess = metrics.compute(), truth[valid].astype(float), (truth + logits)[valid]
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, guess), rel=1e-4, abs=1e-5)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, guess), rel=1e-4, abs=1e-5)
    assert found["n_pixels"] == y.size


@settings(max_examples=25)
@given(SEEDS, st.permutations(range(TILES)), st.integers(1, TILES), st.integers(0, 7))
def test_gap_scores_know_neither_batches_nor_order_nor_how_a_tile_lies(seed, order, size, symmetry):
    logits, truth, group, valid = (x[order] for x in tiles(seed))
    once, batched, swapped = GapScores(1, 2), GapScores(1, 2), GapScores(1, 2)
    once.update(logits > 0, truth, valid, group)
    swapped.update(truth, logits > 0, valid, group)
    for first in range(0, TILES, size):
        part = slice(first, first + size)
        given = (logits[part] > 0, truth[part], valid[part])
        turned = [np.rot90(x[:, :: -1 if symmetry & 4 else 1], symmetry & 3, (1, 2)) for x in given]
        batched.update(*turned, group[part])
    found, other = once.compute((5.0, 10.0)), swapped.compute((5.0, 10.0))
    assert str(batched.compute((5.0, 10.0))) == str(found)  # as text NaN equals NaN
    for kind in ("boundary", "object"):
        np.testing.assert_equal(found[f"{kind}_precision"], other[f"{kind}_recall"])
        np.testing.assert_equal(found[f"{kind}_f1"], other[f"{kind}_f1"])
    assert found["gaps_false"] == other["gaps_missed"]


@settings(max_examples=25)
@given(SEEDS, st.sampled_from([0, 1, 2.5]), st.integers(1, 4))
def test_no_more_is_near_or_matched_than_there_is_and_all_of_what_is_the_same(seed, tolerance, min_area):
    logits, truth, _, valid = tiles(seed)
    for predicted, true, known in zip(logits[..., 0] > 0, truth[..., 0], valid[..., 0], strict=True):
        near, wider = (boundary_counts(predicted, true, t, known) for t in (tolerance, tolerance + 1))
        assert (near <= wider).all()
        for matched, ours, found, theirs in (near, object_counts(predicted, true, min_area, known)):
            assert matched <= ours
            assert found <= theirs
        assert len(set(boundary_counts(true, true, 0, known))) == 1
        assert len(set(object_counts(true, true, min_area, known))) == 1
