import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from forestgaps_jax.config import Config
from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.geotiff import write_geotiff
from forestgaps_jax.data.ground import refuse_shared_ground
from forestgaps_jax.data.sources import create_data, evaluation_sampler, load_sites, training_sampler
from forestgaps_jax.data.synthetic import is_virtual, virtual_forest
from forestgaps_jax.data.tiles import split_blocks
from forestgaps_jax.types import Grid, Sampler, Site

RNG = np.random.default_rng(0)


def make_site(name="made", shape=(64, 64)):
    dsm = RNG.uniform(300, 330, shape).astype(np.float32)
    return Site(name, dsm, RNG.uniform(0, 30, shape).astype(np.float32), Grid(1.0))


@pytest.fixture(scope="module")
def forests():
    return load_sites(Config(virtual_sites=3, virtual_size=96, virtual_slope=(0.0, 30.0), seed=2))


def mean_slope(surface):
    return np.degrees(np.arctan(np.hypot(*np.gradient(surface.astype(float))))).mean()


def test_virtual_forests_are_as_configured(forests):
    assert [site.shape for site in forests] == [(96, 96)] * 3
    assert {site.grid.resolution for site in forests} == {1.0}
    slopes = [mean_slope(site.dsm - site.chm) for site in forests]
    assert slopes[0] < slopes[1] < slopes[2]


def test_virtual_forests_of_a_seed_differ_from_each_other_and_from_those_of_the_next(forests):
    config = Config(virtual_sites=2, virtual_size=96, virtual_slope=(0.0, 30.0), seed=3)
    canopies = [site.chm.tobytes() for site in (*forests, *load_sites(config))]
    assert len(set(canopies)) == 5


def test_raster_pairs_are_read_in_order(tmp_path):
    paths, heights = {"dsm": [], "chm": []}, []
    for number in range(2):
        chm = RNG.uniform(0, 30, (8, 8)).astype(np.float32)
        for kind, array in (("dsm", chm + 300), ("chm", chm)):
            path = tmp_path / f"{number}_{kind.upper()}.tif"
            place = {"crs": "EPSG:32617", "transform": Affine(1, 0, 4e5 + 100 * number, 0, -1, 3e6)}
            with rasterio.open(
                path, "w", driver="GTiff", dtype="float32", count=1, height=8, width=8, **place
            ) as out:
                out.write(array, 1)
            paths[kind].append(str(path))
        heights.append(chm)
    sites = load_sites(Config(dsm=tuple(paths["dsm"]), chm=tuple(paths["chm"])))
    assert [site.name for site in sites] == ["0", "1"]
    for site, chm in zip(sites, heights, strict=True):
        np.testing.assert_array_equal(site.chm, chm)


def test_samplers_hold_the_split_and_only_training_is_random():
    sites = [make_site()]
    config = Config(tile_size=8, batch_size=2, threshold_range=(2.0, 20.0), split_buffer=2, seed=4)
    config.thresholds_per_tile = 3
    data, split = create_data(sites, config), split_blocks(sites, config)
    for part in ("train", "val", "test"):
        sampler = getattr(data, part)
        assert isinstance(sampler, Sampler)
        np.testing.assert_array_equal(sampler.places, getattr(split, part))
        assert (sampler.tile_size, sampler.batch_size) == (8, 2)
        assert tuple(sampler.thresholds.tolist()) == config.thresholds
        assert sampler.shuffle == (part == "train")
        assert sampler.augmentation == (Augmentation(turns=True) if part == "train" else None)
        drawn = sampler.threshold_range
        assert (None if drawn is None else tuple(drawn.tolist())) == (
            (2.0, 20.0) if part == "train" else None
        )
        assert sampler.thresholds_per_tile == (3 if part == "train" else 1)


def test_augmentation_can_be_left_off():
    assert create_data([make_site()], Config(tile_size=8, augment=False)).train.augmentation is None


def test_parts_of_fraction_0_are_none():
    data = create_data([make_site()], Config(tile_size=8, val_fraction=0, test_fraction=0))
    assert data.val is None
    assert data.test is None


def test_evaluation_sampler_reads_whole_sites_tile_by_tile():
    sites = [make_site("a", (16, 17)), make_site("b", (8, 24))]
    sampler = evaluation_sampler(sites, Config(tile_size=8, batch_size=7, thresholds=(7.0, 12.0)))
    places = [(0, row, column) for row in (0, 8) for column in (0, 8)] + [(1, 0, c) for c in (0, 8, 16)]
    batch = jax.jit(lambda s: s.sample(jnp.int32(1)))(sampler)
    assert sampler.steps_per_epoch == 2
    for tile, mask, (site, row, column) in zip(batch.dsm, batch.mask, places, strict=True):
        window = np.s_[row : row + 8, column : column + 8]
        np.testing.assert_array_equal(tile[..., 0], sites[site].dsm[window])
        np.testing.assert_array_equal(mask[..., 0], sites[site].chm[window] < 12.0)


def test_training_sampler_overlaps_tiles_and_reaches_the_edges():
    sampler = training_sampler([make_site("a", (16, 20))], Config(tile_size=8, tile_overlap=0.5))
    assert sampler.shuffle
    expected = {(0, row, column) for row in (0, 4, 8) for column in (0, 4, 8, 12)}
    assert {tuple(map(int, place)) for place in sampler.places} == expected


# Ranges of the virtual forests


@pytest.fixture(scope="module")
def wide():
    """Settings that differ in everything, and their forests."""
    config = Config(
        virtual_sites=5, virtual_size=192, virtual_slope=(0.0, 40.0), virtual_closure=(0.3, 0.9),
        virtual_height=(10.0, 40.0), virtual_resolution=(0.5, 2.0), seed=1,
    )  # fmt: skip
    return config, load_sites(config)


def test_virtual_forests_fill_their_ranges_evenly(wide):
    _, forests = wide
    pixels = [site.grid.resolution for site in forests]
    np.testing.assert_allclose(sorted(pixels), 0.5 * 4 ** (np.arange(5) / 4))
    slopes = [
        np.degrees(np.arctan(np.hypot(*np.gradient((s.dsm - s.chm).astype(float), s.grid.resolution)))).mean()
        for s in forests
    ]
    np.testing.assert_allclose(slopes, [0, 10, 20, 30, 40], atol=2)
    # Low trees are hard to tell from the undergrowth, of up to 4 m.
    closures = [(site.chm > 4.2).mean() for site in forests]
    np.testing.assert_allclose(sorted(closures), np.linspace(0.3, 0.9, 5), atol=0.04)
    tall = [np.quantile(site.chm[site.chm > 4.2], 0.9) for site in forests]
    np.testing.assert_allclose(sorted(tall), np.linspace(10, 40, 5), rtol=0.25)


def test_steepness_tallness_closure_and_pixels_do_not_go_together(wide):
    _, forests = wide
    orders = [
        np.argsort([measure(site) for site in forests]).tolist()
        for measure in (
            lambda site: site.grid.resolution,
            lambda site: (site.chm > 4.2).mean(),
            lambda site: np.quantile(site.chm[site.chm > 4.2], 0.9),
        )
    ]
    assert len({tuple(order) for order in (*orders, [0, 1, 2, 3, 4])}) == 4


def test_sites_of_one_seed_are_the_same_bit_for_bit(wide):
    config, forests = wide
    for site, again in zip(forests, load_sites(config), strict=True):
        assert site.dsm.tobytes() == again.dsm.tobytes()
        assert (site.name, site.grid) == (again.name, again.grid)


# Canopy heights without a surface


@pytest.fixture
def canopies(tmp_path):
    """Three rasters of canopy height: two without a CRS at one place, one in a UTM zone."""
    from rasterio.crs import CRS

    grids = {
        "a_CHM": Grid(1.0, 0.0, 0.0),
        "b": Grid(1.0, 0.0, 0.0),
        "c": Grid(0.5, 5e5, 5e6, CRS.from_epsg(32617).to_wkt()),
    }
    heights = {name: RNG.uniform(0, 30, (64, 80)).astype(np.float32) for name in grids}
    heights["c"][:5, :9] = np.nan
    for name, grid in grids.items():
        write_geotiff(tmp_path / f"{name}.tif", heights[name], grid)
    return [str(tmp_path / f"{name}.tif") for name in grids], list(heights.values())


def test_canopies_alone_are_put_on_slopes_from_gentle_to_steep(canopies):
    paths, heights = canopies
    sites = load_sites(Config(chm_only=paths, virtual_slope=(5.0, 35.0)))
    assert [site.name for site in sites] == ["a", "b", "c"]
    for site, chm, slope in zip(sites, heights, (5.0, 20.0, 35.0), strict=True):
        assert site.chm.tobytes() == chm.tobytes()
        np.testing.assert_array_equal(np.isnan(site.dsm), np.isnan(chm))
        terrain = site.dsm.astype(float) - chm
        gradient = np.hypot(*np.gradient(terrain, site.grid.resolution))
        assert np.degrees(np.arctan(gradient[np.isfinite(gradient)])).mean() == pytest.approx(slope, rel=0.15)
        second = np.diff(terrain, 2, axis=0)
        assert np.abs(second[np.isfinite(second)]).max() < 0.6
    again = load_sites(Config(chm_only=paths, virtual_slope=(5.0, 35.0)))
    assert [s.dsm.tobytes() for s in sites] == [s.dsm.tobytes() for s in again]
    other = load_sites(Config(chm_only=paths, virtual_slope=(5.0, 35.0), seed=1))
    assert (sites[0].dsm != other[0].dsm).any()


def test_rasters_canopies_and_virtual_forests_come_in_this_order(canopies, tmp_path):
    paths, heights = canopies
    write_geotiff(tmp_path / "p_DSM.tif", heights[0] + 300, Grid(1.0, 9e5, 9e6))
    write_geotiff(tmp_path / "p_CHM.tif", heights[0], Grid(1.0, 9e5, 9e6))
    pair = {"dsm": [tmp_path / "p_DSM.tif"], "chm": [tmp_path / "p_CHM.tif"]}
    config = Config(chm_only=paths[:1], virtual_sites=2, virtual_size=32, **pair)
    assert [site.name for site in load_sites(config)] == ["p", "a"]
    config.virtual_share = 0.1
    sites = load_sites(config)
    assert [site.name for site in sites] == ["p", "a", "virtual-0", "virtual-1"]
    assert [is_virtual(site) for site in sites] == [False, False, True, True]


@pytest.mark.parametrize(
    ("shape", "pixel", "said"), [((8, 40), 1.0, "shape is"), ((40, 40), 10.0, "resolution is 10")]
)
def test_a_canopy_that_no_terrain_fits_is_refused_by_its_file(shape, pixel, said, tmp_path):
    write_geotiff(tmp_path / "small.tif", np.zeros(shape, np.float32), Grid(pixel, 5e5, 5e6))
    with pytest.raises(ValueError, match=rf"small\.tif cannot be put on virtual terrain: {said}.*allowed: "):
        load_sites(Config(chm_only=[tmp_path / "small.tif"]))


def test_a_missing_canopy_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tif: no such file"):
        load_sites(Config(chm_only=[tmp_path / "none.tif"]))


def test_rasters_without_a_crs_at_one_place_count_as_one_ground_and_say_how_to_part_them(canopies):
    """Two dates of one plot look like this: whoever tests on what trains must be told, not believed."""
    one, two, utm = load_sites(Config(chm_only=canopies[0]))
    with pytest.raises(ValueError, match=r"site b shows ground of a, which trains: .*give .*both .*CRS"):
        refuse_shared_ground([one], [two])
    with pytest.raises(ValueError, match=r"c shows ground of c, which trains.*give other ground$"):
        refuse_shared_ground([utm], [utm])
    refuse_shared_ground([one, two], [utm])
    refuse_shared_ground([virtual_forest(seed, (32, 32)) for seed in range(4)], [one, two, utm])
    refuse_shared_ground([one, two, utm], [virtual_forest(seed, (32, 32)) for seed in range(4)])


def test_rasters_of_one_place_never_train_where_another_is_tested(canopies):
    config = Config(tile_size=16, chm_only=canopies[0][:2], split_buffer=0.0)
    sites = load_sites(config)
    split = split_blocks(sites, config)
    ground = {part: np.zeros((64, 80), bool) for part in ("train", "val", "test")}
    for part, seen in ground.items():
        for _, row, column in getattr(split, part):
            seen[row : row + 16, column : column + 16] = True
        assert seen.any()
    assert not (ground["train"] & (ground["val"] | ground["test"])).any()
    assert set(split.test[:, 0]) == {0, 1}


def test_two_dates_of_a_real_plot_are_one_ground(shared_data):
    folder = shared_data / "chm_only"
    sites = load_sites(Config(chm_only=sorted(folder.glob("ALS_CHM_*.tif")), virtual_slope=(10.0, 30.0)))
    assert [site.name for site in sites] == ["ALS_CHM_CAU_2012", "ALS_CHM_CAU_2014", "ALS_CHM_DUC"]
    with pytest.raises(ValueError, match="CAU_2014 shows ground of ALS_CHM_CAU_2012"):
        refuse_shared_ground(sites[:1], sites[1:])
    refuse_shared_ground(sites[:2], sites[2:])
    # Shares of gap below 10 m that the table beside the rasters gives.
    assert [(site.chm < 10).mean() for site in sites[::2]] == pytest.approx([0.043, 0.019], abs=6e-4)
    for site, slope in zip(sites, (10.0, 20.0, 30.0), strict=True):
        gradient = np.hypot(*np.gradient(site.dsm.astype(float) - site.chm))
        assert np.degrees(np.arctan(gradient[np.isfinite(gradient)])).mean() == pytest.approx(slope, rel=0.1)


# How sites are drawn


def shares_of(sites, batches=200, **settings):
    """Share of the training tiles that each site has over many batches, and the worst of one batch."""
    config = Config(tile_size=16, batch_size=10, augment=False, **settings)
    sampler = training_sampler(sites, config)
    numbers = jax.jit(lambda s: jax.lax.map(lambda step: s.sample(step).dsm[:, 0, 0, 0], jnp.arange(batches)))
    corners = np.asarray(numbers(sampler))
    site = np.floor(corners / 1000.0) - 1
    counts = np.stack([np.sum(site == number, axis=1) for number in range(len(sites))], axis=1)
    assert (counts.sum(axis=1) == 10).all()
    return counts.mean(axis=0) / 10, np.abs(counts / 10 - counts.mean(axis=0) / 10).max()


def levelled(number, shape, virtual=False):
    """A site whose surface is at 1000 m times its number, from 1."""
    heights = np.full(shape, 1000.0 * (number + 1), np.float32)
    grid = virtual_forest(number, (16, 16)).grid if virtual else Grid(1.0, 5e5 * number, 5e6)
    return Site(f"site {number}", heights, np.zeros(shape, np.float32), grid)


PLOTS = [levelled(0, (32, 64)), levelled(1, (16, 32)), levelled(2, (48, 48))]
FORESTS = [levelled(3, (32, 32), virtual=True), levelled(4, (32, 48), virtual=True)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"site_weights": (1.0, 1.0, 2.0)}, (0.25, 0.25, 0.5)),
        ({"site_weights": (0.0, 3.0, 1.0)}, (0.0, 0.75, 0.25)),
        ({"site_weights": (5.0, 0.0, 0.0)}, (1.0, 0.0, 0.0)),
    ],
)
def test_sites_train_as_often_as_their_weights_say(settings, expected):
    shares, worst = shares_of(PLOTS, **settings)
    np.testing.assert_allclose(shares, expected, atol=0.02)
    assert worst < 0.1


def test_virtual_forests_have_their_share_wherever_they_stand_in_the_list():
    """Tiles of 16 px at an overlap of a half: 21, 3, 25 of the plots, and 9, 15 of the forests."""
    order = [PLOTS[0], FORESTS[0], PLOTS[1], FORESTS[1], PLOTS[2]]
    sites = [levelled(i, site.shape, is_virtual(site)) for i, site in enumerate(order)]
    shares, worst = shares_of(sites, virtual_share=0.4, virtual_sites=2)
    expected = np.array([0.6 * 21 / 49, 0.4 * 9 / 24, 0.6 * 3 / 49, 0.4 * 15 / 24, 0.6 * 25 / 49])
    np.testing.assert_allclose(shares, expected, atol=0.02)
    assert worst < 0.1
    weighted, _ = shares_of(sites, virtual_share=0.4, virtual_sites=2, site_weights=(1.0, 0.0, 3.0))
    np.testing.assert_allclose(weighted, [0.15, 0.15, 0.0, 0.25, 0.45], atol=0.02)


def test_without_weights_and_share_every_tile_comes_once():
    for settings in ({}, {"virtual_share": 0.5}):
        sites = PLOTS if not settings else FORESTS
        assert training_sampler(sites, Config(tile_size=16, **settings)).draw is None


def test_a_site_without_a_training_tile_is_left_out_of_the_weights():
    sites = [PLOTS[0], levelled(1, (8, 8)), PLOTS[2]]
    shares, _ = shares_of(sites, site_weights=(1.0, 8.0, 1.0))
    np.testing.assert_allclose(shares, [0.5, 0.0, 0.5], atol=0.02)


@pytest.mark.parametrize(
    ("sites", "settings", "said"),
    [
        (PLOTS, {"site_weights": (1.0, 2.0)}, r"site_weights = \(1.0, 2.0\): must be one .*, here 3"),
        ([*PLOTS, *FORESTS], {"site_weights": (1.0,) * 5, "virtual_share": 0.2}, "one for each .*, here 3"),
        (PLOTS, {"site_weights": (0.0, 0.0, 0.0)}, "no raster that has training tiles has a weight"),
        (
            [levelled(0, (8, 8)), PLOTS[1]],
            {"site_weights": (1.0, 0.0)},
            r"no raster that has training tiles has a weight; training tiles by site: \[0, 3\]",
        ),
        (
            [*PLOTS, levelled(3, (8, 8), virtual=True)],
            {"virtual_share": 0.5},
            "no virtual forest has a training tile; make virtual_size .* larger",
        ),
    ],
)
def test_weights_and_shares_that_cannot_be_are_refused(sites, settings, said):
    config = Config(tile_size=16, split_buffer=0.0, val_fraction=0.0, test_fraction=0.0, **settings)
    for make in (training_sampler, create_data):
        with pytest.raises(ValueError, match=said):
            make(sites, config)


def test_a_share_of_virtual_forests_that_are_not_there_is_told_and_changes_nothing(caplog):
    config = Config(tile_size=16, split_buffer=0.0, val_fraction=0.0, test_fraction=0.0, virtual_share=0.5)
    assert create_data(PLOTS, config).train.draw is None
    assert "virtual_share = 0.5, but none of the sites is a virtual forest" in caplog.text
    shares, _ = shares_of(PLOTS, virtual_share=0.5, site_weights=(1.0, 2.0, 1.0))
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.02)


def test_weights_hold_for_the_training_tiles_of_a_split_and_for_nothing_else():
    config = Config(tile_size=16, split_buffer=0.0, site_weights=(1.0, 0.0), thresholds=(5.0,))
    data = create_data([levelled(0, (64, 64)), levelled(1, (64, 64))], config)
    assert data.train.draw is not None
    assert data.val.draw is None
    assert {int(place[0]) for place in np.concatenate([data.val.places, data.test.places])} <= {0, 1}
    batch = jax.jit(lambda sampler: sampler.sample(jnp.int32(3)))(data.train)
    assert set(np.floor(np.asarray(batch.dsm)[:, 0, 0, 0] / 1000)) == {1.0}
