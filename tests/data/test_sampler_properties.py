"""Any tiles, keys and steps: what a sampler gives against slices of the rasters that it was made from."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.held import Rasters
from forestgaps_jax.data.sampler import SiteDraw, TileSampler
from forestgaps_jax.types import Grid, Site

SIZE, THRESHOLDS, RANGE = 8, (5.0, 10.0, 15.0), (3.0, 25.0)
SHAPES, RESOLUTIONS = ((20, 31), (26, 17), (11, 40)), (1.0, 0.5, 2.0)
SEEDS, EPOCHS = st.integers(0, 2**32 - 1), st.integers(0, 10**5)


def site(number):
    """A rough canopy on flat ground, seen at twice its height: one tells the other, and the place."""
    rng = np.random.default_rng(number)
    chm = rng.uniform(0, 30, SHAPES[number]).astype(np.float32)
    dsm = (2 * chm + 100).astype(np.float32)
    dsm[rng.random(chm.shape) < 0.05], chm[rng.random(chm.shape) < 0.05] = np.nan, np.nan
    return Site(f"site {number}", dsm, chm, Grid(RESOLUTIONS[number]))


SITES = [site(number) for number in range(len(SHAPES))]
RASTERS = Rasters.from_sites(SITES)
sample = jax.jit(lambda sampler, step: sampler.sample(step))


def places(seed, count):
    """Different places, site by site; several sites have none where there are few."""
    rng, found = np.random.default_rng(seed), set()
    while len(found) < count:
        number = int(rng.integers(len(SITES)))
        found.add((number, *(int(rng.integers(side - SIZE + 1)) for side in SHAPES[number])))
    return np.array(sorted(found), np.int32)


def sampler_of(seed, tiles, batch, **options):
    key = jax.random.key(seed)
    return TileSampler(RASTERS, jnp.asarray(places(seed, tiles)), key, SIZE, batch, THRESHOLDS, **options)


def batch_of(sampler, step):
    return jax.tree.map(np.asarray, sample(sampler, jnp.int32(step)))


def epoch_of(sampler, epoch):
    steps = sampler.steps_per_epoch
    batches = [batch_of(sampler, step) for step in range(epoch * steps, (epoch + 1) * steps)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def window(place):
    number, row, column = place
    cut = np.s_[row : row + SIZE, column : column + SIZE]
    return SITES[number].dsm[cut], SITES[number].chm[cut], RESOLUTIONS[number]


def sample_as_bytes(dsm, chm, resolution, *threshold):
    return (*(x.tobytes() for x in (dsm, chm)), float(resolution), *map(float, threshold))


@pytest.mark.parametrize(("tiles", "batch"), [(7, 3), (2, 5)])
@settings(max_examples=8)
@given(SEEDS, EPOCHS)
def test_each_tile_comes_once_an_epoch_and_in_evaluation_once_at_each_threshold(tiles, batch, seed, epoch):
    training = sampler_of(seed, tiles, batch, shuffle=True)
    of_tiles = [window(place) for place in np.asarray(training.places)]
    for sampler, expected in (
        (training, [sample_as_bytes(*tile) for tile in of_tiles]),
        (
            replace(training, shuffle=False),
            [sample_as_bytes(*tile, t) for t in THRESHOLDS for tile in of_tiles],
        ),
    ):
        whole, count = epoch_of(sampler, epoch), len(expected)
        assert sampler.steps_per_epoch == -(-count // batch)
        tell = () if sampler.shuffle else (whole.threshold,)
        given = zip(whole.dsm[..., 0], whole.chm[..., 0], whole.resolution, *tell, strict=True)
        found = [sample_as_bytes(*one) for one in given]
        assert Counter(found[:count]) == Counter(expected)
        assert sampler.shuffle or found[:count] == expected
        # What fills the last batch up counts nowhere.
        assert np.isnan(whole.dsm[count:]).all()
        assert not whole.valid[count:].any()
        assert set(whole.threshold.tolist()) <= set(THRESHOLDS)


# Labels

TILES, BATCH = 9, 6
ROUNDING = 0.01  # m, far more than heights of some hundred metres have in float32
SENSOR = {"smoothing": 5.0, "blur": 1.5, "pits": 0.3, "noise": 0.5, "missing": 0.4}
GROUND = {"tilt": 40.0, "relief": 10.0, "ridges": 15.0}
SETTINGS = {
    "turns": {"turns": True},
    "zoom": {"resolution": 0.4},
    "height": {"height": (0.5, 2.0)},
    "ground": GROUND,
    "sensor": SENSOR,
    "all": {"turns": True, "resolution": 0.4, "height": (0.5, 2.0)} | GROUND | SENSOR,
}
HEIGHTS = {"list": {"thresholds_per_tile": 2}, "range": {"thresholds_per_tile": 2, "threshold_range": RANGE}}
FEW, STEPS = settings(max_examples=6), st.integers(0, 10**6)


def before_and_after(changes, seed, step):
    """The same tiles at the same two thresholds each, as they are and augmented; and the thresholds."""
    plain = sampler_of(seed, TILES, BATCH, shuffle=True, **HEIGHTS["range" if changes == "all" else "list"])
    changed = replace(plain, augmentation=Augmentation(**SETTINGS[changes]))
    before, after = (batch_of(sampler, step) for sampler in (plain, changed))
    np.testing.assert_array_equal(after.threshold, before.threshold)
    return before, after, after.threshold[:, None, None]


@pytest.mark.parametrize("changes", SETTINGS)
@FEW
@given(SEEDS, STEPS)
def test_the_mask_is_the_canopy_below_each_threshold_after_any_augmentation(changes, seed, step):
    before, after, thresholds = before_and_after(changes, seed, step)
    assert after.mask.shape == (BATCH, SIZE, SIZE, 2)
    np.testing.assert_array_equal(after.mask, after.chm < thresholds)
    np.testing.assert_array_equal(after.valid, np.isfinite(after.dsm) & np.isfinite(after.chm))
    zoom = after.resolution / before.resolution
    assert ((zoom >= 0.4 * (1 - 1e-6)) & (zoom <= 1)).all()
    assert changes in ("zoom", "all") or (zoom == 1).all()


@pytest.mark.parametrize("changes", ["ground", "sensor"])
@FEW
@given(SEEDS, STEPS)
def test_other_ground_and_a_worse_sensor_leave_the_truth_to_the_bit(changes, seed, step):
    before, after, _ = before_and_after(changes, seed, step)
    np.testing.assert_array_equal(after.chm, before.chm)
    np.testing.assert_array_equal(after.mask, before.mask)
    assert not (after.valid & ~before.valid).any()


@pytest.mark.parametrize("changes", ["turns", "zoom"])
@FEW
@given(SEEDS, STEPS)
def test_labels_move_with_the_surface(changes, seed, step):
    _, after, thresholds = before_and_after(changes, seed, step)
    canopy = (after.dsm.astype(float) - 100) / 2  # as it is all over these sites
    clear = after.valid & (np.abs(canopy - thresholds) > ROUNDING)
    np.testing.assert_array_equal(after.mask[clear], (canopy < thresholds)[clear])


@FEW
@given(SEEDS, STEPS)
def test_a_turned_tile_is_one_of_the_eight_symmetries_of_it_and_its_labels(seed, step):
    before, after, _ = before_and_after("turns", seed, step)
    for tile, turned in zip(
        *(np.concatenate([b.dsm, b.chm, b.mask], axis=-1) for b in (before, after)), strict=True
    ):
        symmetries = (np.rot90(side, k) for side in (tile, tile[::-1]) for k in range(4))
        assert any(np.array_equal(turned, one, equal_nan=True) for one in symmetries)


@FEW
@given(SEEDS, STEPS)
def test_a_scaled_canopy_is_below_the_threshold_where_it_was_below_its_share(seed, step):
    before, after, thresholds = before_and_after("height", seed, step)
    known = np.isfinite(before.chm)
    sums = (np.where(known, batch.chm, 0).sum(axis=(1, 2, 3), dtype=float) for batch in (after, before))
    scaled = (
        before.chm
        * np.divide(*sums, out=np.ones(BATCH), where=known.any(axis=(1, 2, 3)))[:, None, None, None]
    )
    clear = known & (np.abs(scaled - thresholds) > ROUNDING)
    np.testing.assert_array_equal(after.valid, before.valid)
    np.testing.assert_array_equal(after.mask[clear], (scaled < thresholds)[clear])


@pytest.mark.parametrize("kind", HEIGHTS)
@settings(max_examples=12)
@given(SEEDS, STEPS)
def test_thresholds_of_a_tile_differ_and_are_asked_for(kind, seed, step):
    threshold = batch_of(sampler_of(seed, TILES, BATCH, shuffle=True, **HEIGHTS[kind]), step).threshold
    if kind == "list":
        assert set(threshold.ravel().tolist()) <= set(THRESHOLDS)
        assert (threshold[:, 0] != threshold[:, 1]).all()
    else:
        middle = sum(RANGE) / 2
        assert ((threshold[:, 0] >= RANGE[0]) & (threshold[:, 0] <= middle)).all()
        assert ((threshold[:, 1] >= middle) & (threshold[:, 1] <= RANGE[1])).all()


# Drawing by site

drawn = jax.jit(lambda draw, key: draw(key, 16))


@settings(max_examples=25)
@given(SEEDS, st.lists(st.integers(0, 10), min_size=3, max_size=3).filter(any))
def test_a_batch_drawn_by_site_has_the_share_of_each_but_for_less_than_a_tile(seed, weights):
    where = np.concatenate([places(seed, 30), [(number, 0, 0) for number in range(3)]])
    where = where[np.argsort(where[:, 0], kind="stable")].astype(np.int32)
    shares = np.array(weights) / sum(weights)
    numbers = np.asarray(drawn(SiteDraw.of(where, shares), jax.random.key(seed)))
    found = np.bincount(where[numbers, 0], minlength=3)
    assert (np.abs(found - 16 * shares) < 1 + 1e-4).all()
    assert (found[shares == 0] == 0).all()
