"""Batches from made-up sites whose surface height tells where each pixel came from."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.held import Rasters
from forestgaps_jax.data.sampler import SiteDraw, TileSampler
from forestgaps_jax.types import Grid, Sampler, Site

SIZE, BATCH, THRESHOLDS = 4, 4, (5.0, 10.0, 15.0)
SHAPES = ((9, 13), (16, 5), (4, 30))


def coded_site(number, shape):
    """The surface is 10^6 site + 10^3 row + column, exact in float32; some canopy is not known."""
    row, column = np.indices(shape)
    dsm = (1e6 * number + 1e3 * row + column).astype(np.float32)
    chm = np.random.default_rng(number).uniform(0, 25, shape).astype(np.float32)
    chm[row == column] = np.nan
    return Site(f"site {number}", dsm, chm, Grid(1.0))


SITES = [coded_site(number, shape) for number, shape in enumerate(SHAPES)]
PLACES = np.array(
    [
        *[(0, 0, 0), (0, 5, 9), (0, 3, 2), (0, 1, 7)],
        *[(1, 12, 1), (1, 0, 0), (1, 7, 1)],
        *[(2, 0, 26), (2, 0, 0), (2, 0, 11)],
    ],
    np.int32,
)
TRAIN = TileSampler(
    Rasters.from_sites(SITES), jnp.asarray(PLACES), jax.random.key(0), SIZE, BATCH, THRESHOLDS, shuffle=True
)
TURNED = replace(TRAIN, augmentation=Augmentation(turns=True))
EVAL = replace(TRAIN, shuffle=False)
draw = jax.jit(lambda sampler, step: sampler.sample(step))


def batch_of(sampler, step):
    return jax.tree.map(np.asarray, draw(sampler, jnp.int32(step)))


def epoch_of(sampler, epoch):
    """The batches of an epoch end to end, and which samples are no fillers."""
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    batches = [batch_of(sampler, step) for step in steps]
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    return whole, whole.valid.any(axis=(1, 2, 3))


def tiles_of(sampler, epoch):
    """The surfaces of an epoch without its fillers."""
    batch, used = epoch_of(sampler, epoch)
    return batch.dsm[used][..., 0]


def decode(dsm):
    """Site, row and column of each pixel; site -1 where there is none."""
    code = np.where(np.isfinite(dsm), dsm, -1e6).astype(np.int64)
    return code // 10**6, code // 1000 % 1000, code % 1000


def places_of(batch):
    """Corner of each tile, however it is turned: its lowest code."""
    return list(zip(*(part.tolist() for part in decode(batch.dsm.min(axis=(1, 2, 3)))), strict=True))


def canopy_at(dsm):
    canopy = np.full(dsm.shape, np.nan, np.float32)
    site, row, column = decode(dsm)
    for number, known in enumerate(SITES):
        here = site == number
        canopy[here] = known.chm[row[here], column[here]]
    return canopy


def assert_equal(batch, other):
    for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_labels_true(batch, used):
    canopy = canopy_at(batch.dsm)
    np.testing.assert_array_equal(batch.mask, canopy < batch.threshold[:, None, None, None])
    np.testing.assert_array_equal(batch.valid, np.isfinite(canopy) & used[:, None, None, None])
    assert batch.mask.dtype == np.float32


ALL = sorted(map(tuple, PLACES.tolist()))


@pytest.mark.parametrize("sampler", [TRAIN, TURNED], ids=["plain", "augmented"])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_training_tile_comes_once_an_epoch(sampler, epoch):
    batch, used = epoch_of(sampler, epoch)
    assert sorted(place for place, real in zip(places_of(batch), used, strict=True) if real) == ALL
    assert len(used) == sampler.steps_per_epoch * BATCH == 12


def test_order_differs_between_epochs_and_keys_and_is_a_pure_function_of_them():
    other = replace(TRAIN, key=jax.random.key(1))
    first, second, of_other = (places_of(epoch_of(*args)[0]) for args in ((TRAIN, 0), (TRAIN, 1), (other, 0)))
    assert len({tuple(order[: len(ALL)]) for order in (first, second, of_other, ALL)}) == 4
    # Steps asked for in another order, and by an equal sampler made anew.
    anew = replace(TRAIN, key=jax.random.key(0))
    for step in (5, 0, 3):
        once, again = batch_of(TRAIN, step), batch_of(anew, step)
        assert_equal(once, again)
        assert places_of(once) == (first + second)[BATCH * step : BATCH * (step + 1)]


@pytest.mark.parametrize("sampler", [TRAIN, EVAL], ids=["train", "eval"])
def test_fillers_of_the_last_batch_have_no_valid_pixel(sampler):
    batch, used = epoch_of(sampler, 0)
    slots = len(PLACES) * (1 if sampler.shuffle else len(THRESHOLDS))
    np.testing.assert_array_equal(used, np.arange(len(used)) < slots)
    assert len(used) > slots, "there are fillers to look at"
    per_tile = [
        np.isfinite(SITES[site].chm[row : row + SIZE, column : column + SIZE]).sum()
        for site, row, column in PLACES
    ]
    assert batch.valid.sum() == sum(per_tile) * slots / len(PLACES)


def test_tiles_equal_slices_of_sites_of_different_shapes():
    cut = np.asarray(TRAIN.rasters.cut(jnp.asarray(PLACES), SIZE))
    for tile, (site, row, column) in zip(cut, PLACES, strict=True):
        window = np.s_[row : row + SIZE, column : column + SIZE]
        np.testing.assert_array_equal(tile[..., 0], SITES[site].dsm[window])
        np.testing.assert_array_equal(tile[..., 1], SITES[site].chm[window])


@pytest.mark.parametrize("sampler", [TRAIN, TURNED, EVAL], ids=["plain", "augmented", "eval"])
def test_labels_are_those_of_the_canopy_under_each_pixel(sampler):
    for epoch in range(3):
        assert_labels_true(*epoch_of(sampler, epoch))


def test_fault_16_surface_unknown_is_not_valid():
    site = coded_site(0, (4, 4))
    site.dsm[1, 2] = np.nan
    sampler = replace(EVAL, rasters=Rasters.from_sites([site]), places=jnp.zeros((1, 3), jnp.int32))
    valid = batch_of(sampler, 0).valid[0, ..., 0]
    np.testing.assert_array_equal(valid, np.isfinite(site.dsm) & np.isfinite(site.chm))


def test_augmented_tiles_are_turned_by_all_eight_symmetries():
    seen = set()
    for epoch in range(8):
        _, row, column = decode(tiles_of(TURNED, epoch))
        relative = np.stack([axis - axis.min(axis=(1, 2), keepdims=True) for axis in (row, column)], axis=-1)
        seen |= {tile.tobytes() for tile in relative}
    upright = np.stack(np.indices((SIZE, SIZE)), axis=-1)
    assert seen == {np.rot90(side, k).tobytes() for side in (upright, np.flip(upright, 0)) for k in range(4)}


def test_unaugmented_tiles_stand_upright():
    _, row, column = decode(tiles_of(TRAIN, 0))
    np.testing.assert_array_equal(row - row[:, :1, :1], np.broadcast_to(np.arange(SIZE)[:, None], row.shape))
    np.testing.assert_array_equal(column - column[:, :1, :1], np.broadcast_to(np.arange(SIZE), row.shape))


def drawn_thresholds(sampler, steps=500):
    thresholds = jax.jit(lambda s: jax.lax.map(lambda step: s.sample(step).threshold, jnp.arange(steps)))
    return np.asarray(thresholds(sampler)).ravel()


def test_listed_thresholds_are_drawn_evenly():
    values, counts = np.unique(drawn_thresholds(TRAIN), return_counts=True)
    assert values.tolist() == list(THRESHOLDS)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_thresholds_of_a_range_are_drawn_evenly_from_it():
    values = drawn_thresholds(replace(TRAIN, threshold_range=(3.0, 25.0)))
    assert values.min() >= 3
    assert values.max() < 25
    assert stats.kstest(values, "uniform", (3.0, 22.0)).pvalue > 1e-3


# Several thresholds a tile

RANGE = (3.0, 25.0)
OF_RANGE = replace(TRAIN, threshold_range=RANGE, thresholds_per_tile=4)
OF_LIST = replace(TRAIN, thresholds_per_tile=2)


def test_several_thresholds_of_a_range_are_one_from_each_of_its_equal_parts():
    values = drawn_thresholds(OF_RANGE).reshape(-1, 4)
    low, high = np.float32(RANGE)
    ends = np.linspace(low, high, 5)
    for part, start, end in zip(values.T, ends, ends[1:], strict=False):
        assert part.min() >= start - 1e-5
        assert part.max() <= end + 1e-5
        assert stats.kstest(part, "uniform", (start, end - start)).pvalue > 1e-3
    assert (np.diff(values, axis=1) > 0).all()
    assert values.min() >= low
    assert values.max() <= high
    # What a part gives tells nothing of the next.
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.1


def test_several_listed_thresholds_are_drawn_without_replacement():
    values = drawn_thresholds(OF_LIST).reshape(-1, 2)
    pairs, counts = np.unique(values, axis=0, return_counts=True)
    assert pairs.tolist() == [[a, b] for a in THRESHOLDS for b in THRESHOLDS if a != b]
    assert stats.chisquare(counts).pvalue > 1e-3
    every = drawn_thresholds(replace(TRAIN, thresholds_per_tile=3), steps=20).reshape(-1, 3)
    assert (np.sort(every, axis=1) == THRESHOLDS).all()


@pytest.mark.parametrize(
    "sampler",
    [OF_RANGE, OF_LIST, replace(OF_RANGE, augmentation=TURNED.augmentation)],
    ids=["range", "list", "augmented"],
)
def test_a_tile_has_a_label_for_each_of_its_thresholds(sampler):
    batch, used = epoch_of(sampler, 0)
    count = sampler.thresholds_per_tile
    assert batch.threshold.shape == (3 * BATCH, count)
    assert (batch.mask.shape, batch.mask.dtype) == ((3 * BATCH, SIZE, SIZE, count), np.float32)
    canopy = canopy_at(batch.dsm)
    for number in range(count):
        one = replace(batch, mask=batch.mask[..., [number]], threshold=batch.threshold[:, number])
        assert_labels_true(one, used)
    np.testing.assert_array_equal(batch.chm, np.where(used[:, None, None, None], canopy, np.nan))


def test_tiles_do_not_depend_on_how_many_thresholds_they_are_asked_for():
    for step in range(2):
        one, several = batch_of(TRAIN, step), batch_of(OF_RANGE, step)
        for name in ("dsm", "chm", "valid", "resolution"):
            np.testing.assert_array_equal(getattr(one, name), getattr(several, name))


@pytest.mark.parametrize("drawn_from", [None, RANGE])
def test_one_threshold_a_tile_is_a_number_a_tile(drawn_from):
    """The same draws as before several could be asked for."""
    sampler = replace(TRAIN, threshold_range=drawn_from)
    _, key = jax.random.split(jax.random.fold_in(jax.random.split(TRAIN.key)[1], 1))
    if drawn_from:
        expected = jax.random.uniform(key, (BATCH,), minval=RANGE[0], maxval=RANGE[1])
    else:
        expected = jax.random.choice(key, jnp.float32(THRESHOLDS), (BATCH,))
    found = batch_of(sampler, 1)
    np.testing.assert_allclose(found.threshold, expected, rtol=1e-6)
    assert found.mask.shape == (BATCH, SIZE, SIZE, 1)
    assert_equal(found, batch_of(replace(sampler, thresholds_per_tile=1), 1))


def test_evaluation_asks_for_one_threshold_a_tile():
    assert_equal(epoch_of(replace(EVAL, thresholds_per_tile=3), 0)[0], epoch_of(EVAL, 0)[0])


def test_fault_16_evaluation_turns_nothing_and_goes_in_order_through_every_tile_at_every_threshold():
    batch, used = epoch_of(EVAL, 0)
    expected = [(tuple(place), t) for t in THRESHOLDS for place in PLACES.tolist()]
    found = list(zip(places_of(batch), batch.threshold.tolist(), strict=True))
    assert [pair for pair, real in zip(found, used, strict=True) if real] == expected
    assert_equal(batch, epoch_of(EVAL, 1)[0])


def test_neither_steps_nor_epochs_nor_keys_compile_again():
    step = jax.jit(lambda sampler, step: sampler.sample(step))
    for number in range(3 * TRAIN.steps_per_epoch):
        step(TRAIN, jnp.int32(number))
    step(replace(TRAIN, key=jax.random.key(5)), jnp.int32(0))
    assert step._cache_size() == 1


CHANGED = Augmentation(turns=True, tilt=30.0, height=(0.7, 1.4), resolution=0.5, smoothing=3.0, blur=1.0)


def test_augmented_batches_are_labelled_by_their_own_canopy_in_one_compile():
    step = jax.jit(lambda sampler, step: sampler.sample(step))
    sampler, seen = replace(TRAIN, augmentation=CHANGED), []
    for number in range(6):
        batch = jax.tree.map(np.asarray, step(sampler, jnp.int32(number)))
        np.testing.assert_array_equal(batch.valid, np.isfinite(batch.dsm) & np.isfinite(batch.chm))
        np.testing.assert_array_equal(batch.mask, batch.chm < batch.threshold[:, None, None, None])
        assert_equal(batch, step(replace(sampler, key=jax.random.key(0)), jnp.int32(number)))
        seen.append(batch)
    assert step._cache_size() == 1
    plain = [batch_of(TRAIN, number) for number in range(6)]
    assert [b.threshold.tolist() for b in seen] == [b.threshold.tolist() for b in plain]
    assert all(
        (b.valid.sum() > 0) & (b.dsm[b.valid] != p.dsm[b.valid]).any()
        for b, p in zip(seen, plain, strict=True)
    )


def test_batches_tell_the_pixel_of_their_site():
    sites = [replace(site, grid=Grid(0.5 + number)) for number, site in enumerate(SITES)]
    rasters = Rasters.from_sites(sites)
    for sampler in (TRAIN, TURNED, EVAL):
        batch, used = epoch_of(replace(sampler, rasters=rasters), 0)
        site = np.array([place[0] for place in places_of(batch)])
        np.testing.assert_array_equal(batch.resolution[used], 0.5 + site[used])
    zoomed, used = epoch_of(replace(TRAIN, rasters=rasters, augmentation=Augmentation(resolution=0.25)), 0)
    plain, _ = epoch_of(replace(TRAIN, rasters=rasters), 0)
    factor = (zoomed.resolution / plain.resolution)[used]
    assert factor.min() >= 0.25
    assert factor.min() < factor.max() == 1


# Drawing by site


def draws_of(shares, batch_size, batches=400):
    """Tile numbers of many batches, ``[batches, batch_size]``."""
    keys = jax.random.split(jax.random.key(3), batches)
    site_draw = SiteDraw.of(PLACES, np.array(shares))
    return np.asarray(jax.jit(jax.vmap(lambda key: site_draw(key, batch_size)))(keys))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize(
    "shares", [(0.2, 0.3, 0.5), (0.0, 0.9, 0.1), (0.6, 0.0, 0.4), (0.35, 0.65, 0.0), (0.0, 1.0, 0.0)]
)
def test_each_batch_has_the_share_of_each_site_but_for_less_than_a_tile(shares, batch_size):
    site = PLACES[draws_of(shares, batch_size), 0]
    for number, share in enumerate(shares):
        found = np.sum(site == number, axis=1)
        assert (np.abs(found - share * batch_size) < 1 + 1e-4).all()
        rest = share * batch_size % 1.0  # of a tile more, in so many of the batches
        spread = 5 * np.sqrt(rest * (1 - rest) / len(found)) + 1e-4
        assert found.mean() == pytest.approx(share * batch_size, abs=spread)


def test_tiles_of_a_site_are_drawn_evenly():
    counts = np.bincount(draws_of((0.2, 0.3, 0.5), 60).ravel(), minlength=len(PLACES))
    for number in range(3):
        assert stats.chisquare(counts[PLACES[:, 0] == number]).pvalue > 1e-3


def test_a_site_without_a_tile_is_passed_over():
    places = PLACES[PLACES[:, 0] != 1]
    site_draw = SiteDraw.of(places, np.array([0.5, 0.0, 0.5]))
    assert set(places[np.asarray(site_draw(jax.random.key(0), 8)), 0]) == {0, 2}


@pytest.mark.parametrize("batch_size", [3, 8, 1000])
@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.2, 0.3, 0.5)])
def test_the_highest_draw_there_is_falls_on_the_last_site_with_a_share(shares, batch_size, monkeypatch):
    """``batch_size - 1 + draw`` rounds to ``batch_size`` in float32."""
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.float32(1 - 2**-24))
    drawn = np.asarray(SiteDraw.of(PLACES, np.array(shares))(jax.random.key(0), batch_size))
    assert PLACES[drawn[-1], 0] == np.flatnonzero(shares)[-1]


def test_a_sampler_that_draws_by_site_fills_every_batch_of_its_epoch():
    sampler = replace(TURNED, draw=SiteDraw.of(PLACES, np.array([0.25, 0.0, 0.75])))
    assert sampler.steps_per_epoch == TURNED.steps_per_epoch == 3
    for epoch in range(3):
        batch, used = epoch_of(sampler, epoch)
        assert used.all()
        assert_labels_true(batch, used)
        assert [place[0] for place in places_of(batch)] == [0, 2, 2, 2] * 3
    assert_equal(batch_of(sampler, 7), batch_of(replace(sampler, key=jax.random.key(0)), 7))
    seen = {tuple(places_of(batch_of(sampler, step))) for step in range(6)}
    assert len(seen) > 3


def test_a_draw_by_site_is_nothing_to_evaluation():
    drawn = replace(EVAL, draw=SiteDraw.of(PLACES, np.array([1.0, 0.0, 0.0])))
    assert_equal(epoch_of(drawn, 0)[0], epoch_of(EVAL, 0)[0])


def test_fewer_tiles_than_a_batch_make_one_batch():
    sampler = replace(TRAIN, places=TRAIN.places[:3])
    assert sampler.steps_per_epoch == 1
    batch, used = epoch_of(sampler, 0)
    assert used.tolist() == [True, True, True, False]
    assert sorted(places_of(batch)[:3]) == sorted(map(tuple, PLACES[:3].tolist()))


def test_a_sampler_serves_as_a_source_of_batches():
    assert isinstance(TRAIN, Sampler)


def test_more_pixels_than_int32_counts_are_an_error():
    endless = np.broadcast_to(np.float32(0), (2**16, 2**15))
    with pytest.raises(ValueError, match=r"2147483648 pixels.*below 2\^31"):
        Rasters.from_sites([Site("endless", endless, endless, Grid(1.0))])
