"""Augmented tiles: whatever is on, the canopy height stays the truth of the labels."""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from forestgaps_jax.config import Config
from forestgaps_jax.data.augment import Augmentation, turn, turn_at_random

TILE = np.random.default_rng(0).normal(size=(5, 5, 2)).astype(np.float32)
SYMMETRIES = {np.rot90(side, k).tobytes() for side in (TILE, np.flip(TILE, 0)) for k in range(4)}

SIZE, BATCH = 16, 64
SENSOR = {"smoothing": 5.0, "blur": 1.5, "pits": 0.3, "noise": 0.5, "missing": 0.4}
GROUND = {"tilt": 40.0, "relief": 10.0, "ridges": 15.0}
ALL = Augmentation(turns=True, height=(0.5, 2.0), resolution=0.5, **GROUND, **SENSOR)
augmented = jax.jit(
    lambda augmentation, tiles, resolution, key: augmentation(tiles, resolution, key), static_argnums=0
)
keys = st.integers(0, 2**31 - 1).map(jax.random.key)
resolutions = st.floats(0.25, 4.0, width=32)


def forest(seed=0, missing=0.1):
    """Tiles of a rough slope with trees, some pixels unknown in the surface, some in the canopy."""
    rng = np.random.default_rng(seed)
    ground = 300 + 2.0 * np.arange(SIZE)[:, None] + rng.uniform(0, 1, (BATCH, SIZE, SIZE))
    chm = rng.uniform(0, 30, ground.shape)
    tiles = np.stack([ground + chm, chm], axis=-1)
    return np.where(rng.random(tiles.shape) < missing, np.nan, tiles).astype(np.float32)


TILES = forest()


def change(augmentation, tiles, key, resolution=1.0):
    """Surface, canopy height and pixel sides after the augmentation."""
    new, sides = augmented(augmentation, tiles, jnp.full(len(tiles), resolution, jnp.float32), key)
    return np.asarray(new)[..., 0], np.asarray(new)[..., 1], np.asarray(sides)


def only(name):
    return Augmentation(**{name: getattr(ALL, name)})


def many_surfaces(augmentation, tiles, resolution=1.0):
    """Surfaces of the batch under eight keys, end to end."""
    return np.concatenate([change(augmentation, tiles, jax.random.key(i), resolution)[0] for i in range(8)])


def test_turn_gives_each_of_the_eight_symmetries_once():
    turned = jax.vmap(turn, (None, 0))(jnp.asarray(TILE), jnp.arange(8))
    assert len(SYMMETRIES) == 8
    assert {np.asarray(tile).tobytes() for tile in turned} == SYMMETRIES
    np.testing.assert_array_equal(turned[0], TILE)


def test_random_turns_are_symmetries_drawn_evenly_for_each_tile_alone():
    many = jnp.broadcast_to(TILE, (4000, *TILE.shape))
    turned = [np.asarray(tile).tobytes() for tile in turn_at_random(many, jax.random.key(1))]
    counts = [turned.count(symmetry) for symmetry in SYMMETRIES]
    assert sum(counts) == 4000
    # 500 expected of each; six standard deviations.
    assert all(abs(count - 500) < 6 * np.sqrt(4000 * 7 / 64) for count in counts)


def test_another_key_turns_otherwise():
    many = jnp.broadcast_to(TILE, (32, *TILE.shape))
    first, again, other = (np.asarray(turn_at_random(many, jax.random.key(key))) for key in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


# Settings


def test_the_configuration_names_each_augmentation():
    values = {f"augment_{name}": value for name, value in (GROUND | SENSOR).items()}
    config = Config(augment_height=(0.5, 2.0), augment_resolution=0.5, **values)
    assert Augmentation.from_config(config) == ALL
    assert Augmentation.from_config(Config(augment=False)) is None
    assert Augmentation.from_config(Config()) == Augmentation(turns=True)


@pytest.mark.parametrize("name", [field.name for field in fields(Augmentation)])
def test_each_setting_alone_changes_tiles(name):
    dsm, _, sides = change(only(name), TILES, jax.random.key(0))
    assert not np.array_equal(dsm, TILES[..., 0], equal_nan=True)
    assert (sides != 1).any() == (name == "resolution")


def test_a_range_the_wrong_way_round_is_refused():
    with pytest.raises(ValueError, match=r"augment_height = \(1.5, 0.5\): the first must not be above"):
        Augmentation.from_config(Config(augment_height=(1.5, 0.5)))


def test_nothing_on_leaves_every_bit():
    dsm, chm, sides = change(Augmentation(), TILES, jax.random.key(0), resolution=0.7)
    np.testing.assert_array_equal(np.stack([dsm, chm], -1), TILES)
    np.testing.assert_array_equal(sides, np.float32(0.7))


# Ground


@given(resolutions, keys)
@settings(max_examples=5)
def test_a_tilt_adds_exactly_a_plane_and_leaves_the_canopy(resolution, key):
    dsm, chm, _ = change(only("tilt"), TILES, key, resolution)
    np.testing.assert_array_equal(chm, TILES[..., 1])
    y, x = np.indices((SIZE, SIZE)) * resolution
    for added in np.float64(dsm) - TILES[..., 0]:
        known = np.isfinite(added)
        columns = np.stack([y[known], x[known], np.ones(known.sum())], axis=-1)
        plane, *_ = np.linalg.lstsq(columns, added[known])
        np.testing.assert_allclose(columns @ plane, added[known], atol=1e-3)
        assert np.degrees(np.arctan(np.hypot(*plane[:2]))) <= 40.0


def test_tilts_are_drawn_evenly_in_angle_and_direction():
    dsm = many_surfaces(only("tilt"), np.zeros_like(TILES))
    down, right = dsm[:, 1, 0] - dsm[:, 0, 0], dsm[:, 0, 1] - dsm[:, 0, 0]
    slope, direction = np.degrees(np.arctan(np.hypot(down, right))), np.arctan2(down, right)
    assert stats.kstest(slope, "uniform", (0, 40)).pvalue > 1e-3
    assert stats.kstest(direction, "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-3


@given(resolutions, keys)
@settings(max_examples=5)
def test_new_ground_knows_nothing_of_the_canopy_and_leaves_it(resolution, key):
    ground = Augmentation(**GROUND)
    dsm, chm, sides = change(ground, TILES, key, resolution)
    bare, *_ = change(ground, np.zeros_like(TILES), key, resolution)
    np.testing.assert_array_equal(chm, TILES[..., 1])
    np.testing.assert_array_equal(sides, np.float32(resolution))
    np.testing.assert_array_equal(np.isfinite(dsm), np.isfinite(TILES[..., 0]))
    np.testing.assert_allclose(dsm - TILES[..., 0], np.where(np.isfinite(dsm), bare, np.nan), atol=1e-3)


# Canopy and pixels


@given(keys)
@settings(max_examples=5)
def test_heights_and_threshold_scaled_together_give_the_same_labels(key):
    dsm, chm, _ = change(only("height"), TILES, key)
    valid = np.isfinite(TILES).all(axis=-1)
    np.testing.assert_array_equal(np.isfinite(dsm) & np.isfinite(chm), valid)
    factor = np.nanmedian(np.float64(chm) / TILES[..., 1], axis=(1, 2), keepdims=True)
    assert (factor >= 0.5 - 1e-6).all()
    assert (factor <= 2 + 1e-6).all()
    assert np.ptp(factor) > 0.5
    np.testing.assert_allclose(chm, factor * TILES[..., 1], rtol=1e-5)
    np.testing.assert_allclose((dsm - chm)[valid], (TILES[..., 0] - TILES[..., 1])[valid], atol=1e-3)
    for threshold in (5.0, 15.0):
        clear = valid & (np.abs(TILES[..., 1] - threshold) > 1e-3)
        before, after = TILES[..., 1] < threshold, chm < factor * threshold
        np.testing.assert_array_equal(after[clear], before[clear])


@given(resolutions, keys)
@settings(max_examples=5)
def test_half_of_the_tiles_are_zoomed_into_with_the_pixel_told(resolution, key):
    tiles = forest(missing=0.02)
    tiles[..., 0] = tiles[..., 1] + np.arange(SIZE) * np.float32(resolution)  # rises 1 m a metre
    dsm, chm, sides = change(only("resolution"), tiles, key, resolution)
    assert (sides <= np.float32(resolution)).all()
    assert (sides >= 0.5 * resolution * (1 - 1e-6)).all()
    acted = sides != np.float32(resolution)
    assert 8 < acted.sum() < 56  # six standard deviations around a half
    np.testing.assert_array_equal(np.stack([dsm, chm], -1)[~acted], tiles[~acted])
    slope = np.diff((dsm - chm)[acted], axis=2) / sides[acted, None, None]
    np.testing.assert_allclose(slope[np.isfinite(slope)], 1.0, atol=1e-3)
    assert np.isfinite(slope).mean() > 0.5
    assert np.nanmax(chm) <= np.nanmax(tiles[..., 1])


# Sensor


@given(resolutions, keys)
@settings(max_examples=5)
def test_a_sensor_leaves_the_canopy_height_and_makes_nothing_known(resolution, key):
    dsm, chm, sides = change(Augmentation(**SENSOR), TILES, key, resolution)
    np.testing.assert_array_equal(chm, TILES[..., 1])
    np.testing.assert_array_equal(sides, np.float32(resolution))
    assert not (np.isfinite(dsm) & ~np.isfinite(TILES[..., 0])).any()


@pytest.mark.parametrize("name", SENSOR)
def test_each_effect_acts_on_a_random_half_of_the_tiles(name):
    surfaces = many_surfaces(only(name), TILES, resolution=0.25)
    same = np.mean(
        [np.array_equal(dsm, TILES[i % BATCH, ..., 0], equal_nan=True) for i, dsm in enumerate(surfaces)]
    )
    # Six standard deviations of 512 tiles; and what acts with hardly any strength changes nothing.
    assert 0.37 < same < 0.63 + 0.1


def test_closing_raises_the_surface_to_that_of_the_widest_window_at_most():
    tiles = forest(missing=0.0)
    dsm, *_ = change(only("smoothing"), tiles, jax.random.key(0))
    widest = ndimage.grey_closing(tiles[..., 0], size=(1, 5, 5))
    inside = np.s_[:, 4:-4, 4:-4]
    assert (dsm >= tiles[..., 0]).all()
    assert (dsm <= widest + 1e-3)[inside].all()
    assert np.isclose(dsm, widest, atol=1.0)[inside].any()


def test_noise_and_missing_pixels_are_within_what_is_set():
    noisy = many_surfaces(only("noise"), np.zeros_like(TILES)).astype(float)
    # Half of the tiles, the deviation even from 0 to 0.5: the mean square is a half of a third of 0.25.
    assert np.mean(noisy**2) == pytest.approx(0.25 / 6, rel=0.25)
    lost = np.isnan(many_surfaces(only("missing"), np.zeros_like(TILES))).mean(axis=(1, 2))
    assert lost.max() <= 0.4
    assert lost.mean() == pytest.approx(0.1, rel=0.25)


# Everything


@given(resolutions, keys)
@settings(max_examples=5)
def test_everything_at_once_gives_heights_or_nothing(resolution, key):
    tiles = np.concatenate([TILES[:-1], np.full_like(TILES[:1], np.nan)])
    dsm, chm, sides = change(ALL, tiles, key, resolution)
    assert not np.isinf(np.stack([dsm, chm])).any()
    assert np.isnan(dsm[-1]).all()
    assert np.isnan(chm[-1]).all()
    assert np.isfinite(sides).all()
    assert np.nanmin(chm) >= 0
    assert np.isfinite(dsm[:-1]).any(axis=(1, 2)).all()


def test_draws_are_a_function_of_key_and_tile():
    same = np.broadcast_to(TILES[:1], TILES.shape)
    first, again, other = (change(ALL, same, jax.random.key(key))[0] for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len({tile.tobytes() for tile in (*first, *other)}) == 2 * BATCH


def test_a_setting_leaves_the_draws_of_the_others():
    for augmentation in (Augmentation(**SENSOR), ALL):
        lost = np.isnan(change(augmentation, np.zeros_like(TILES), jax.random.key(0))[0])
        alone = np.isnan(change(only("missing"), np.zeros_like(TILES), jax.random.key(0))[0])
        if augmentation == ALL:  # half of the tiles have other pixels
            lost, alone = lost.any(axis=(1, 2)), alone.any(axis=(1, 2))
        np.testing.assert_array_equal(lost, alone)
        assert 0 < lost.mean() < 1
