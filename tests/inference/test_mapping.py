"""From a DSM on disk to maps on disk."""

import logging
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from forestgaps_jax import Config, create_state
from forestgaps_jax.checkpoint import Checkpointer
from forestgaps_jax.cli import main
from forestgaps_jax.data import virtual_forest
from forestgaps_jax.data.geotiff import open_heights
from forestgaps_jax.inference import map_files, predict_array, predict_raster
from forestgaps_jax.inference.domain import trained_pixels, trained_thresholds
from forestgaps_jax.inference.overview import Overview
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.state import init_state

PLACE = Affine(1.0, 0, 500_000.0, 0, -1.0, 5_000_000.0)


def write(path, heights, place=PLACE, crs="EPSG:32617", nodata=-9999.0, **creation):
    profile = {"driver": "GTiff", "height": heights.shape[0], "width": heights.shape[1], "count": 1}
    with rasterio.open(
        path, "w", **profile, dtype=heights.dtype, transform=place, crs=crs, nodata=nodata, **creation
    ) as dataset:
        dataset.write(np.where(np.isfinite(heights), heights, nodata).astype(heights.dtype), 1)
    return path


@pytest.fixture(scope="module")
def forest():
    dsm = virtual_forest(5, (61, 43), slope=15.0).dsm.copy()
    dsm[20:45, 10:40] = np.nan
    return dsm


@pytest.fixture
def dsm(forest, tmp_path):
    return write(tmp_path / "plot_DSM.tif", forest)


@pytest.fixture
def config(config):
    """Without what takes long to compile."""
    return replace(config, opening_windows=(), detrend=False)


@pytest.fixture
def state(config):
    return create_state(create_model_from_config(config), config)


@pytest.fixture
def run(tmp_path, config, state):
    folder = tmp_path / "a run"
    folder.mkdir()
    config.to_toml(folder / "config.toml")
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(state, {})
    return folder


def height_network(params, model_state, dsm, threshold, rngs=None, train=False):
    return 4 * (threshold[:, None, None, None] - jnp.nan_to_num(dsm)), model_state


@pytest.fixture
def by_height():
    """A network that calls gap what lies lower than the threshold; and its settings."""
    config = Config(tile_size=16, depth=1, thresholds=(5.0, 10.0))
    return init_state(height_network, {"none": jnp.zeros(())}, config), config


def bands(path):
    with rasterio.open(path) as dataset:
        return dataset.read(masked=True).filled(np.nan if dataset.dtypes[0] == "float32" else 255)


# What is written


def test_maps_are_those_of_the_raster_in_memory(run, state, forest, dsm, tmp_path):
    maps = predict_raster(run, dsm, [15.0, 5.0], tmp_path / "maps")
    expected = predict_array(state, forest, [15.0, 5.0], resolution=1.0, tile_size=16)
    np.testing.assert_array_equal(bands(maps.probability), expected)
    known = np.isfinite(forest)
    np.testing.assert_array_equal(bands(maps.mask), np.where(known, expected >= 0.5, 255))
    shares = (expected >= 0.5)[:, known].mean(axis=1)
    assert list(maps.gap_shares) == [15.0, 5.0]
    np.testing.assert_allclose(list(maps.gap_shares.values()), shares)
    assert maps.known_area == pytest.approx(known.sum() / 1e4)
    names = {"plot_mask.tif", "plot_probability.tif", "plot_quicklook.png"}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == names
    assert maps.quicklook.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_maps_lie_on_the_dsm_and_say_where_they_come_from(run, config, dsm, tmp_path):
    maps = predict_raster(run, dsm, (), tmp_path / "maps")
    for path in (maps.mask, maps.probability):
        with rasterio.open(path) as dataset, rasterio.open(dsm) as source:
            assert (dataset.crs, dataset.transform, dataset.shape) == (source.crs, PLACE, source.shape)
            assert [float(dataset.tags(b)["threshold"]) for b in dataset.indexes] == list(config.thresholds)
            tags = dataset.tags()
        assert (tags["run"], tags["model"], tags["dsm"]) == ("a run", "unet_film", "plot_DSM.tif")
        assert tags["software"].startswith("forestgaps_jax ")


def test_rows_that_run_north_are_turned(by_height, tmp_path):
    state, config = by_height
    heights = np.arange(40 * 30, dtype=np.float32).reshape(40, 30) / 100
    path = write(tmp_path / "up.tif", heights[::-1], Affine(1.0, 0, 500_000.0, 0, 1.0, 5_000_000.0 - 40))
    maps = predict_raster(state, path, [5.0], tmp_path, config=config)
    np.testing.assert_array_equal(bands(maps.mask)[0], heights <= 5)
    with rasterio.open(maps.mask) as dataset:
        assert dataset.transform == PLACE


def test_scale_and_no_data_are_read_as_elsewhere(by_height, tmp_path):
    state, config = by_height
    decimetres = np.full((33, 40), 70, np.int16)
    decimetres[:, :7], decimetres[0] = 30, -32768
    path = write(tmp_path / "a.tif", decimetres, nodata=-32768)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (0.1,)
    mask = bands(predict_raster(state, path, [5.0], tmp_path, config=config).mask)[0]
    np.testing.assert_array_equal(mask, np.where(decimetres == -32768, 255, decimetres == 30))


def test_deviation_is_written_on_request(config, forest, dsm, tmp_path):
    config = replace(config, use_droppath=True, droppath_final_prob=0.5)
    state = create_state(create_model_from_config(config), config)
    maps = predict_raster(state, dsm, [5.0], tmp_path, config=config, samples=3)
    assert maps.deviation == tmp_path / "plot_deviation.tif"
    deviation = bands(maps.deviation)[0]
    np.testing.assert_array_equal(np.isnan(deviation), np.isnan(forest))
    assert 0 < np.nanmean(deviation) < 0.6
    plain = predict_array(state, forest, [5.0], resolution=1.0, tile_size=16)
    np.testing.assert_allclose(bands(maps.probability), plain, atol=1e-6)


# Strips


def test_a_file_is_read_in_rows_as_it_is_read_whole(dsm, forest, tmp_path):
    upward = write(tmp_path / "up.tif", forest[::-1], Affine(1.0, 0, 0.0, 0, 1.0, 100.0))
    for path in (dsm, upward):
        with open_heights(path) as file:
            assert file.shape == forest.shape
            parts = [file.read_southward(first, min(first + 9, 61)) for first in range(0, 61, 9)]
            np.testing.assert_array_equal(np.concatenate(parts), forest)


@pytest.mark.parametrize("longest", [7, 20, 500])
def test_overview_is_the_mean_of_known_pixels(longest):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 61, 43))
    values[rng.uniform(size=values.shape) < 0.3] = np.nan
    values[:, :20, :20] = np.nan
    overview = Overview((61, 43), 2, longest)
    for first, last in ((0, 5), (5, 6), (6, 40), (40, 61)):
        overview.add(first, values[:, first:last])
    k = overview.factor
    assert -(-61 // k) <= longest
    means = overview.means()
    for row in range(means.shape[1]):
        for column in range(means.shape[2]):
            square = values[:, row * k : row * k + k, column * k : column * k + k]
            count = (~np.isnan(square)).sum(axis=(1, 2))
            with np.errstate(invalid="ignore"):
                expected = np.nansum(square, axis=(1, 2)) / count
            np.testing.assert_allclose(means[:, row, column], expected)


# What is refused


def test_maps_that_are_there_are_kept_unless_told(run, dsm, tmp_path):
    (tmp_path / "plot_mask.tif").write_text("mine")
    with pytest.raises(FileExistsError, match=r"plot_mask.tif: there already; .*--overwrite"):
        predict_raster(run, dsm, (), tmp_path)
    assert (tmp_path / "plot_mask.tif").read_text() == "mine"
    maps = predict_raster(run, dsm, (), tmp_path, overwrite=True)
    assert bands(maps.mask).shape == (2, 61, 43)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"crs": "EPSG:4326", "place": Affine(1e-5, 0, 10.0, 0, -1e-5, 50.0)},
            "in degrees.*gdalwarp -t_srs EPSG:32632",
        ),
        ({"crs": "EPSG:2225"}, "US survey foot"),
        ({"place": Affine(1.0, 0.2, 500_000.0, 0.2, -1.0, 5_000_000.0)}, "rotated"),
        ({"place": Affine(1.0, 0, 0.0, 0, -2.0, 0.0)}, "not square"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_rasters_not_in_square_metres_are_refused(by_height, forest, tmp_path, change, message):
    state, config = by_height
    path = write(tmp_path / "a.tif", forest, **change)
    with pytest.raises(ValueError, match=message):
        predict_raster(state, path, [5.0], tmp_path / "maps", config=config)
    assert not (tmp_path / "maps").exists()


def test_a_dsm_without_a_height_is_refused_and_leaves_no_map(by_height, tmp_path):
    state, config = by_height
    path = write(tmp_path / "a.tif", np.full((20, 20), np.nan, np.float32))
    with pytest.raises(ValueError, match="no height from -500 to 9000 m: is it a DSM in metres"):
        predict_raster(state, path, [5.0], tmp_path / "maps", config=config)
    assert list((tmp_path / "maps").iterdir()) == []


def test_a_dsm_that_is_cut_off_leaves_no_map(by_height, tmp_path):
    state, config = by_height
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.tif", rng.uniform(0, 20, (200, 200)).astype(np.float32), blockysize=8)
    path.write_bytes(path.read_bytes()[: 200 * 200 * 3])
    with pytest.raises(ValueError, match=r"a.tif: not a raster or cut off"):
        predict_raster(state, path, [5.0], tmp_path / "maps", config=config)
    assert list((tmp_path / "maps").iterdir()) == []


def test_a_map_that_breaks_off_leaves_the_old_one(by_height, dsm, tmp_path, monkeypatch):
    state, config = by_height
    old = predict_raster(state, dsm, [5.0], tmp_path / "maps", config=config)
    before = {path: path.read_bytes() for path in old.paths}

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(map_files, "plot_gap_map", fail)
    with pytest.raises(KeyboardInterrupt):
        predict_raster(state, dsm, [10.0], tmp_path / "maps", config=config, overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "maps").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "a state comes without its settings: give config too"),
        ({"overlap": -0.1}, "overlap = -0.1"),
        ({"thresholds": [0.0]}, "above 0"),
        ({"samples": 4}, "needs a Flax NNX network"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_what_cannot_be_is_refused(by_height, dsm, tmp_path, change, message):
    state, config = by_height
    arguments = {"config": config, "thresholds": [5.0], "out_folder": tmp_path / "maps", **change}
    with pytest.raises(ValueError, match=message):
        predict_raster(state, dsm, **arguments)


@pytest.mark.parametrize(("name", "stride"), [("unet_film", 2), ("unet_ground", 8)])
def test_windows_that_the_network_does_not_take_are_refused_before_anything_is_written(
    config, dsm, tmp_path, name, stride
):
    config = replace(config, model_name=name, opening_windows=(5,))
    state = create_state(create_model_from_config(config), config)
    size = 16 + stride // 2
    message = f"tile_size = {size}: .*{size} x {size} px: both must be multiples of {stride},"
    with pytest.raises(ValueError, match=message):
        predict_raster(state, dsm, [5.0], tmp_path / "maps", config=config, tile_size=size)
    assert not (tmp_path / "maps").exists()


def test_windows_are_of_any_size_that_the_network_takes_whatever_depth_says(by_height, dsm, forest, tmp_path):
    state, config = by_height
    maps = predict_raster(state, dsm, [305.0], tmp_path / "maps", config=config, tile_size=17)
    known = np.isfinite(forest)
    np.testing.assert_array_equal(bands(maps.mask)[0][known], forest[known] <= 305)


# What was trained


def test_what_the_training_never_saw_is_named(by_height, forest, tmp_path, caplog):
    state, config = by_height
    path = write(tmp_path / "a.tif", forest, Affine(4.0, 0, 500_000.0, 0, -4.0, 5_000_000.0))
    with caplog.at_level(logging.WARNING):
        predict_raster(state, path, [3.0, 7.0, 25.0], tmp_path, config=config)
    assert "3, 25 m: trained from 5 to 10 m" in caplog.text
    assert "pixels of 4 m: trained on 1 m" in caplog.text


def test_what_it_saw_needs_no_warning(by_height, dsm, tmp_path, caplog):
    state, config = by_height
    with caplog.at_level(logging.WARNING):
        predict_raster(state, dsm, [5.0, 7.0, 10.0], tmp_path, config=config)
    assert caplog.text == ""


def test_heights_are_said_to_be_no_probabilities(by_height, dsm, tmp_path, caplog):
    state, config = by_height
    config = replace(config, model_name="unet_regression", loss_type="mae")
    with caplog.at_level(logging.WARNING):
        predict_raster(state, dsm, [5.0], tmp_path, config=config)
    assert "predicts heights" in caplog.text


def test_pixels_of_a_training_are_those_of_its_rasters(dsm):
    one = {"dsm": (str(dsm),), "chm": (str(dsm),)}
    assert trained_pixels(Config(**one, virtual_resolution=(0.25, 0.5))) == (1.0, 1.0)
    mixed = Config(**one, virtual_resolution=(0.25, 0.5), virtual_share=0.5, augment_resolution=0.5)
    assert trained_pixels(mixed) == (0.125, 1.0)
    assert trained_pixels(Config(dsm=("gone.tif",), chm=("gone.tif",))) is None
    assert trained_thresholds(Config(threshold_range=(2.0, 30.0))) == (2.0, 30.0)
    assert trained_thresholds(Config(thresholds=(9.0, 4.0))) == (4.0, 9.0)


# The command


def test_predict_from_the_command_line(run, dsm, tmp_path, capsys):
    words = ["predict", str(run), str(dsm), "--threshold", "5", "12.5", "--out", str(tmp_path / "maps")]
    assert main([*words, "--overlap", "0.25", "--batch-size", "3"]) == 0
    printed = capsys.readouterr().out
    mask = tmp_path / "maps" / "plot_mask.tif"
    known = bands(mask)[:, np.isfinite(bands(tmp_path / "maps" / "plot_probability.tif")[0])]
    for threshold, band in zip(("5", "12.5"), known, strict=True):
        assert any(f"below {threshold:>4} m {band.mean():7.1%}" in line for line in printed.splitlines())
    for path in (tmp_path / "maps").iterdir():
        assert str(path) in printed
    assert "forestgaps-jax gaps" in printed
    assert main(words) == 1
    assert "there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "a.tif"], "nowhere is no run folder"),
        (["RUN", "plot_DMS.tif"], "plot_DMS.tif: no such file; near names there: plot_DSM.tif"),
        (
            ["RUN", "DSM", "--tile-size", "17"],
            "tile_size = 17: tile of 17 x 17 px: both must be multiples of 2",
        ),
        (["RUN", "DSM", "--threshold", "-5"], "above 0"),
        (["RUN", "DSM", "--samples", "8"], "nothing in this network is random"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_line(run, dsm, tmp_path, capsys, words, message):
    names = {"RUN": str(run), "DSM": str(dsm), "plot_DMS.tif": str(Path(dsm).with_name("plot_DMS.tif"))}
    assert main(["predict", *(names.get(word, word) for word in words), "--out", str(tmp_path / "maps")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
