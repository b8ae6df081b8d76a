"""Where tiles lie, proved by painting every tile into rasters of its site and onto the ground."""

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy import ndimage

from forestgaps_jax.config import Config
from forestgaps_jax.data.rasters import read_site
from forestgaps_jax.data.tiles import all_tiles, split_blocks
from forestgaps_jax.types import Grid, Site

PARTS = ("train", "val", "test")
CELL = 0.25  # m; every ground used here is a whole number of these


def make_site(shape, *, resolution=1.0, left=0.0, top=0.0, crs="UTM", known=None):
    heights = np.zeros(shape, np.float32)
    if known is not None:
        heights[~known] = np.nan
    return Site("made", heights, heights, Grid(resolution, left, top, crs))


def blotches(shape, seed, share=0.8):
    """A mask of large patches, about ``share`` of it True."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 4)
    return field < np.quantile(field, share)


def windows(places, size):
    for site, row, column in places:
        yield site, np.s_[row : row + size, column : column + size]


def paint(places, sites, size):
    """How many of the tiles cover each pixel, a raster for each site."""
    canvas = [np.zeros(site.shape, int) for site in sites]
    for site, window in windows(places, size):
        assert canvas[site][window].shape == (size, size), "a tile reaches over the edge"
        canvas[site][window] += 1
    return canvas


def paint_ground(places, sites, size):
    """Which `CELL` squares of ground the tiles show; all sites on one canvas."""
    left, top = min(s.grid.left for s in sites), max(s.grid.top for s in sites)
    canvas = np.zeros((1000, 1000), bool)
    for site, row, column in places:
        grid = sites[site].grid
        side = round(size * grid.resolution / CELL)
        i = round((top - grid.top + row * grid.resolution) / CELL)
        j = round((grid.left - left + column * grid.resolution) / CELL)
        assert canvas[i : i + side, j : j + side].shape == (side, side)
        canvas[i : i + side, j : j + side] = True
    return canvas


def clearance(kept_out, trained):
    """Least number of pixels between what trains and what does not."""
    return int(ndimage.distance_transform_cdt(~kept_out, "chessboard")[trained].min()) - 1


def split_or_reject(sites, config):
    try:
        return split_blocks(sites, config)
    except ValueError:
        reject()


def assert_clear_on_the_ground(sites, split, config):
    train, val, test = (paint_ground(getattr(split, part), sites, config.tile_size) for part in PARTS)
    assert not (train & val).any()
    assert not (train & test).any()
    assert not (val & test).any()
    assert clearance(val | test, train) * CELL >= config.split_buffer


settings_of_a_split = st.builds(
    dict,
    tile_size=st.sampled_from([4, 7, 8]),
    tile_overlap=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    block_size=st.sampled_from([0.0, 8.0, 13.5]),
    split_buffer=st.sampled_from([0.0, 0.6, 3.0]),
    min_valid_fraction=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    val_fraction=st.sampled_from([0.05, 0.15, 0.3]),
    test_fraction=st.sampled_from([0.05, 0.15, 0.3]),
    seed=st.integers(0, 99),
)
shapes = st.tuples(st.integers(28, 70), st.integers(28, 70))


@settings(max_examples=50, deadline=None)
@given(shapes=st.lists(shapes, min_size=1, max_size=3), chosen=settings_of_a_split, seed=st.integers(0, 9))
def test_fault_16_no_pixel_serves_two_parts(shapes, chosen, seed):
    config = Config(**chosen)
    sites = [
        make_site(shape, left=1000.0 * i, known=blotches(shape, seed + i)) for i, shape in enumerate(shapes)
    ]
    split, size = split_or_reject(sites, config), config.tile_size
    for train, val, test in zip(*(paint(getattr(split, part), sites, size) for part in PARTS), strict=True):
        held_out = val + test
        assert held_out.max() <= 1, "validation and test tiles lie side by side"
        assert not (train.astype(bool) & held_out.astype(bool)).any()
        if train.any() and held_out.any():
            assert clearance(held_out.astype(bool), train.astype(bool)) >= config.split_buffer
    for part in PARTS:
        places = getattr(split, part)
        assert len(places)
        assert len(np.unique(places, axis=0)) == len(places)
        known = [sites[site].valid[window].mean() for site, window in windows(places, size)]
        assert min(known) >= config.min_valid_fraction
        assert min(known) > 0


@settings(max_examples=40, deadline=None)
@given(
    chosen=settings_of_a_split, right=st.integers(-80, 100), down=st.integers(-80, 100), nowhere=st.booleans()
)
def test_no_square_metre_serves_two_parts_at_two_resolutions(chosen, right, down, nowhere):
    config = Config(**chosen)
    crs, left, top = None if nowhere else "UTM", 400_000.0, 5_000_000.0
    sites = [
        make_site((60, 70), left=left, top=top, crs=crs),
        make_site((100, 90), resolution=0.5, left=left + right * CELL, top=top - down * CELL, crs=crs),
    ]
    assert_clear_on_the_ground(sites, split_or_reject(sites, config), config)


def test_all_that_is_clear_of_the_held_out_blocks_trains():
    """Of two overlapping sites, too, one of which does not reach to all blocks of their ground."""
    sites = [make_site((96, 32)), make_site((96, 32), top=-80.0)]
    for seed in range(5):
        config = Config(
            tile_size=8, block_size=16, split_buffer=2, val_fraction=0.1, test_fraction=0.1, seed=seed
        )
        split = split_blocks(sites, config)
        # Ground of 176 x 32 m is 11 x 2 blocks of 16 m; site 1 begins at row 80.
        held_out = np.zeros((176, 32), bool)
        for site, row, column in np.concatenate([split.val, split.test]):
            block = 16 * ((80 * site + row) // 16), 16 * (column // 16)
            held_out[block[0] : block[0] + 16, block[1] : block[1] + 16] = True
        near = ndimage.binary_dilation(held_out, np.ones((5, 5)))
        expected = {
            (site, row, column)
            for site in (0, 1)
            for row in range(0, 89, 4)
            for column in range(0, 25, 4)
            if not near[80 * site + row : 80 * site + row + 8, column : column + 8].any()
        }
        assert {tuple(place) for place in split.train.tolist()} == expected


@pytest.mark.parametrize("gap", [0.0, 1.0, 4.0])
def test_buffer_holds_between_neighbouring_sites(gap):
    """Sheets of one survey lie edge to edge: across the edge is near, too."""
    sites = [make_site((48, 48)), make_site((48, 48), left=48.0 + gap)]
    for seed in range(5):
        config = Config(tile_size=8, block_size=16, split_buffer=6, seed=seed)
        assert_clear_on_the_ground(sites, split_blocks(sites, config), config)


def test_sites_of_other_crs_are_other_ground():
    sites = [make_site((64, 64), crs=crs) for crs in ("UTM 17", "UTM 18")]
    split = split_blocks(sites, Config(tile_size=8, block_size=16, split_buffer=1))
    held_out = np.concatenate([split.val, split.test])
    first, second = ({tuple(p[1:]) for p in held_out if p[0] == site} for site in (0, 1))
    assert first != second


def test_training_comes_as_near_as_the_buffer_allows():
    site = make_site((80, 80))
    config = Config(tile_size=8, block_size=8, tile_overlap=0.9, split_buffer=5, val_fraction=0.02)
    split = split_blocks([site], config)
    (train,), (val,), (test,) = (paint(getattr(split, part), [site], 8) for part in PARTS)
    assert clearance((val + test) > 0, train > 0) == 5


@pytest.mark.parametrize("resolution", [0.5, 1.0, 2.0])
def test_buffer_and_block_size_are_metres(resolution):
    site = make_site((160, 160), resolution=resolution, left=300_000.25, top=4_000_000.5)
    config = Config(
        tile_size=8, block_size=16 * resolution, tile_overlap=0.9, split_buffer=3 * resolution - 0.1
    )
    split = split_blocks([site], config)
    (train,), (val,), (test,) = (paint(getattr(split, part), [site], 8) for part in PARTS)
    assert clearance((val + test) > 0, train > 0) == 3
    # 100 blocks of 2 x 2 tiles each.
    assert len(split.val) == len(split.test) == 15 * 4


def test_a_wanted_part_gets_a_block_however_small_its_fraction():
    split = split_blocks(
        [make_site((48, 48))], Config(tile_size=8, val_fraction=0.001, test_fraction=0.001, split_buffer=0)
    )
    assert len(split.val) == len(split.test) == 4


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_a_part_of_fraction_0_is_empty(val_fraction):
    config = Config(tile_size=8, val_fraction=val_fraction, test_fraction=0, split_buffer=0)
    split = split_blocks([make_site((64, 64))], config)
    assert split.test.shape == (0, 3)
    assert (len(split.val) > 0) == (val_fraction > 0)
    assert len(split.train) == 15 * 15 if not val_fraction else 0 < len(split.train) < 15 * 15


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes,
    size=st.integers(3, 12),
    overlap=st.sampled_from([0.0, 0.4, 0.5, 0.8]),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_training_tiles_are_the_strided_ones_and_those_flush_with_the_edge(shape, size, overlap, share, seed):
    known = blotches(shape, seed)
    config = Config(
        tile_size=size, tile_overlap=overlap, min_valid_fraction=share, val_fraction=0, test_fraction=0
    )
    split = split_or_reject([make_site(shape, known=known)], config)
    stride = max(1, round(size * (1 - overlap)))
    starts = [{*range(0, length - size, stride), length - size} for length in shape]
    expected = {
        (0, row, column)
        for row in starts[0]
        for column in starts[1]
        if (n := known[row : row + size, column : column + size].sum()) >= share * size**2 and n
    }
    assert {tuple(place) for place in split.train.tolist()} == expected


def test_same_seed_same_split_and_another_seed_another():
    sites = [make_site((96, 96))]
    first, again, other = (split_blocks(sites, Config(tile_size=8, seed=seed)) for seed in (3, 3, 4))
    for part in PARTS:
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
        assert getattr(first, part).tolist() != getattr(other, part).tolist()


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((7, 100), {}, r"hold 0 block\(s\).*tile_size \(now 8 px\)"),
        ((20, 20), {}, r"hold 1 block\(s\).*give more or larger sites"),
        ((64, 64), {"block_size": 7.0}, r"block_size = 7 m is smaller than a tile of 8 m"),
        ((64, 64), {"split_buffer": 200.0}, r"no training tile.*split_buffer \(now 200 m\)"),
    ],
)
def test_sites_that_cannot_be_split_are_an_error_that_says_what_to_change(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        split_blocks([make_site(shape)], Config(tile_size=8, **settings))


def test_block_is_measured_in_tiles_of_the_coarsest_site_of_its_ground():
    sites = [make_site((64, 64)), make_site((128, 128), resolution=0.5)]
    with pytest.raises(ValueError, match="block_size = 6 m is smaller than a tile of 8 m"):
        split_blocks(sites, Config(tile_size=8, block_size=6))


def test_all_tiles_cover_sites_side_by_side_without_those_too_little_known():
    shape, known = (40, 56), blotches((40, 56), 1, 0.6)
    sites = [make_site(shape, known=known), make_site((19, 27), left=1000.0)]
    places = all_tiles(sites, Config(tile_size=8, min_valid_fraction=0.7))
    share = known.reshape(5, 8, 7, 8).mean((1, 3))
    expected = {(0, 8 * i, 8 * j) for i, j in np.argwhere(share >= 0.7)}
    assert {tuple(p) for p in places.tolist() if p[0] == 0} == expected
    assert 0 < len(expected) < 35
    assert paint(places, sites, 8)[1].max() == 1
    assert (places[:, 0] == 1).sum() == 2 * 3


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    size=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_all_tiles_are_as_many_as_fit_apart_and_only_those_too_little_known_are_missing(
    shape, size, share, seed
):
    config = Config(tile_size=size, min_valid_fraction=share)
    if min(shape) < size:
        reject()
    whole = all_tiles([make_site(shape)], config)
    assert len(whole) == (shape[0] // size) * (shape[1] // size)
    assert paint(whole, [make_site(shape)], size)[0].max() == 1
    known = blotches(shape, seed)
    enough = [n >= share * size**2 and n for n in (known[window].sum() for _, window in windows(whole, size))]
    if any(enough):
        found = all_tiles([make_site(shape, known=known)], config)
        np.testing.assert_array_equal(found, whole[np.array(enough, bool)])


def test_all_tiles_of_sites_without_a_tile_are_an_error():
    with pytest.raises(ValueError, match="no site holds a valid tile of 8 px"):
        all_tiles(
            [make_site((7, 90)), make_site((20, 20), known=np.zeros((20, 20), bool))], Config(tile_size=8)
        )


def test_real_raster_splits(shared_data):
    site = read_site(shared_data / "bcts/bcts_100_DSM.tif", shared_data / "bcts/bcts_100_CHM.tif")
    split = split_blocks([site], config := Config(tile_size=64))
    (train,), (val,), (test,) = (paint(getattr(split, part), [site], 64) for part in PARTS)
    assert min(len(getattr(split, part)) for part in PARTS) > 0
    assert (val + test).max() == 1
    assert clearance((val + test) > 0, train > 0) * site.grid.resolution >= config.split_buffer
