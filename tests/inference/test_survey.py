import csv
import json
import math
import os

import numpy as np
import pyogrio
import pytest
import rasterio
from rasterio.crs import CRS

from forestgaps_jax.cli import main
from forestgaps_jax.data import write_geotiff
from forestgaps_jax.inference import extract_gaps, format_gap_table, gap_statistics, survey_gaps
from forestgaps_jax.inference.gap_maps import read_canopy_on, read_masks
from forestgaps_jax.inference.geotiff import MASK, MapPlace, write_map
from forestgaps_jax.types import Grid

UTM = CRS.from_epsg(32617)
GRID = Grid(0.5, 500_000.0, 5_000_000.0, UTM.to_wkt())
CHM = np.random.default_rng(4).gamma(2.0, 6.0, (40, 60)).astype(np.float32)
CHM[3:9, 5:11] = np.nan
THRESHOLDS = (5.0, 7.5)


def masks():
    return {t: np.where(np.isnan(CHM), 255, t > CHM).astype(np.uint8) for t in THRESHOLDS}


@pytest.fixture
def mask_path(tmp_path):
    """A mask as `predict_raster` writes it."""
    path = tmp_path / "site_mask.tif"
    place = MapPlace(CHM.shape, rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), UTM)
    with write_map(path, MASK, place, THRESHOLDS, {}) as write:
        write(0, np.stack(list(masks().values())))
    return path


@pytest.fixture
def chm_path(tmp_path):
    write_geotiff(tmp_path / "site_CHM.tif", CHM, GRID)
    return tmp_path / "site_CHM.tif"


def write_masks(path, bands, dtype="uint8", **profile):
    """A mask of another hand."""
    shape = {"count": len(bands), "height": CHM.shape[0], "width": CHM.shape[1], "dtype": dtype}
    place = {"transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), "crs": UTM}
    with rasterio.open(path, "w", driver="GTiff", **(shape | place | profile)) as dataset:
        dataset.write(np.stack(bands))
    return path


def test_the_masks_of_predict_are_read_band_by_band(mask_path):
    found = list(read_masks(mask_path))
    assert [threshold for threshold, _, _ in found] == [5.0, 7.5]
    for threshold, mask, grid in found:
        np.testing.assert_array_equal(mask, masks()[threshold])
        assert (grid.resolution, grid.left, grid.top) == (0.5, 500_000.0, 5_000_000.0)
        assert CRS.from_wkt(grid.crs) == UTM
    assert [threshold for threshold, _, _ in read_masks(mask_path, [7.5])] == [7.5]
    with pytest.raises(ValueError, match=r"no gaps below 6 m, only below 5, 7\.5 m"):
        next(read_masks(mask_path, [6.0]))


def test_masks_of_others_are_told_their_thresholds(tmp_path):
    path = write_masks(tmp_path / "other.tif", [masks()[5.0], masks()[7.5]])
    with pytest.raises(ValueError, match="do not tell a height threshold"):
        next(read_masks(path))
    found = {threshold: mask for threshold, mask, _ in read_masks(path, [5.0, 7.5])}
    for threshold, mask in masks().items():
        np.testing.assert_array_equal(found[threshold], mask)


def test_rows_that_run_north_are_turned(tmp_path):
    bottom = 5_000_000 - 0.5 * CHM.shape[0]
    path = tmp_path / "turned.tif"
    write_masks(path, [masks()[5.0][::-1]], transform=rasterio.Affine(0.5, 0, 500_000, 0, 0.5, bottom))
    ((_, mask, grid),) = read_masks(path, [5.0])
    np.testing.assert_array_equal(mask, masks()[5.0])
    assert (grid.left, grid.top) == (500_000, 5_000_000)


@pytest.mark.parametrize("from_chm", [True, False])
def test_a_survey_writes_what_the_functions_give(from_chm, mask_path, chm_path, tmp_path):
    out = tmp_path / "out.gpkg"
    if from_chm:
        found = survey_gaps(chm_path, out, thresholds=THRESHOLDS, from_chm=True, min_area=0.5)
    else:
        found = survey_gaps(mask_path, out, chm=chm_path, min_area=0.5)
    gaps = {t: extract_gaps(CHM, GRID, threshold=t, min_area=0.5) for t in THRESHOLDS}
    assert found == {threshold: gap_statistics(g) for threshold, g in gaps.items()}
    assert json.loads(out.with_suffix(".json").read_text())["7.5"]["gaps"] == len(gaps[7.5])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text(encoding="utf-8").splitlines()))
    for threshold in THRESHOLDS:
        _, _, outlines, columns = pyogrio.raw.read(out, layer=f"gaps_{threshold:g}m")
        table = gaps[threshold].table
        assert len(outlines) == len(table) > 30
        listed = [row for row in rows if float(row["threshold"]) == threshold]
        for name, values in zip(table.dtype.names, columns, strict=True):
            np.testing.assert_array_equal(values, table[name])
            text = [float(row[name] or "nan") for row in listed]
            np.testing.assert_allclose(text, table[name], atol=5.01e-4)
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


def test_a_site_without_gaps_has_all_its_files(chm_path, tmp_path):
    found = survey_gaps(chm_path, tmp_path / "none.gpkg", thresholds=[5.0], from_chm=True, min_area=1e5)
    assert found[5.0]["gaps"] == 0
    assert json.loads((tmp_path / "none.json").read_text())["5"]["area_mean"] is None
    (head,) = (tmp_path / "none.csv").read_text().splitlines()
    assert head.startswith("threshold,gap_id,x,y,gap_area,")
    assert "nan" in format_gap_table(found)


@pytest.mark.parametrize("there", [".gpkg", ".csv", ".json", ".png"])
def test_no_file_is_lost(there, chm_path, tmp_path, capsys):
    kept = (tmp_path / "out.gpkg").with_suffix(there)
    kept.write_text("mine")
    words = ["gaps", str(chm_path), "--from-chm", "--threshold", "5", "--out", str(tmp_path / "out.gpkg")]
    before = sorted(os.listdir(tmp_path))
    assert main(words) == 1
    assert f"{kept} exists: name another --out, or say --overwrite" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before
    assert kept.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert kept.read_bytes() != b"mine"


def test_the_command_prints_a_row_for_each_threshold(mask_path, capsys):
    assert main(["gaps", str(mask_path), "--min-area", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    statistics = {t: gap_statistics(extract_gaps(CHM, 0.5, threshold=t, min_area=0.5)) for t in THRESHOLDS}
    for line, (threshold, row) in zip(lines[1:3], statistics.items(), strict=True):
        cells = line.split()
        assert (float(cells[0]), int(cells[2])) == (threshold, row["gaps"])
        assert cells[4] == f"{row['gap_fraction']:.1%}"
        assert float(cells[9]) == pytest.approx(row["zeta_exponent"], abs=0.006)
    assert (mask_path.parent / "site_mask_gaps.gpkg").is_file()
    assert "site_mask_gaps.gpkg" in lines[-2]


def test_heights_as_high_as_the_threshold_are_gap_on_demand(tmp_path):
    path = tmp_path / "flat.tif"
    write_geotiff(path, np.full((10, 10), 5.0, np.float32), GRID)
    numbers = [
        survey_gaps(path, tmp_path / f"{name}.gpkg", thresholds=[5.0], from_chm=True, inclusive=inclusive)
        for name, inclusive in (("below", False), ("to", True))
    ]
    assert [found[5.0]["gaps"] for found in numbers] == [0, 1]
    assert math.isnan(numbers[1][5.0]["zeta_standard_error"]) == math.isnan(numbers[1][5.0]["zeta_exponent"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{chm}", "--from-chm"], "need thresholds: --threshold 5 10"),
        (["{chm}"], "for a mask one --threshold for each band"),
        (["{chm}", "--threshold", "5"], "no gap mask (1 gap, 0 none, 255 not known)"),
        (["{mask}", "--inclusive"], "--inclusive needs --from-chm"),
        (["{mask}", "--threshold", "6"], "no gaps below 6 m, only below 5, 7.5 m"),
        (["{mask}", "--threshold", "5", "5"], "one is there twice"),
        (["{chm}", "--from-chm", "--threshold", "5", "--chm", "{chm}"], "leave --chm"),
        (["{mask}", "--chm", "{other}"], "-te 500000 4999980 500030 5000000 other.tif other_on_map.tif"),
        (["{mask}", "--from-chm", "--threshold", "5"], "it has bands"),
        (["{dsm}", "--from-chm", "--threshold", "5"], "is it a canopy height model?"),
        (["{mask}", "--min-area", "9", "--max-area", "5"], "min_area = 9.0, max_area = 5.0"),
        (["{mask}", "--out", "gaps.shp"], "ends in .gpkg"),
        (["nowhere.tif"], "nowhere.tif: no such file"),
        (["{text}"], "not a raster"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_line_that_helps(
    words, message, mask_path, chm_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_geotiff(tmp_path / "dsm.tif", CHM + np.float32(400), GRID)
    write_geotiff(tmp_path / "other.tif", CHM, Grid(0.5, 500_000.25, 5_000_000.0, GRID.crs))
    (tmp_path / "text.tif").write_text("no raster")
    before = sorted(os.listdir(tmp_path))
    names = {"chm": chm_path.name, "mask": mask_path.name}
    names |= {"dsm": "dsm.tif", "other": "other.tif", "text": "text.tif"}
    assert main(["gaps", *(word.format(**names) for word in words)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(os.listdir(tmp_path)) == before


def test_pixels_in_degrees_are_refused(tmp_path):
    place = {"transform": rasterio.Affine(1e-5, 0, 8, 0, -1e-5, 50), "crs": CRS.from_epsg(4326)}
    path = write_masks(tmp_path / "degrees.tif", [masks()[5.0]], **place)
    with pytest.raises(ValueError, match="its pixels are in degrees"):
        next(read_masks(path, [5.0]))


def test_a_mask_that_is_cut_off_is_named(mask_path):
    mask_path.write_bytes(mask_path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"site_mask\.tif.*(cut off|not a raster)"):
        list(read_masks(mask_path))


def test_heights_on_the_grid_of_a_map_are_taken_as_they_are(chm_path):
    np.testing.assert_array_equal(read_canopy_on(chm_path, GRID, CHM.shape), CHM)
