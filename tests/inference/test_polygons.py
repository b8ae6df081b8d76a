import os
import sys

import hypothesis.strategies as st
import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given
from rasterio.crs import CRS

from forestgaps_jax.data import read_dsm
from forestgaps_jax.inference import extract_gaps, gap_polygons, write_geopackage
from forestgaps_jax.types import Grid

UTM = Grid(0.5, 500_000.0, 5_000_000.0, CRS.from_epsg(32617).to_wkt())
MASK = np.random.default_rng(0).uniform(size=(30, 40)) < 0.3
CHM = np.random.default_rng(1).uniform(0, 5, MASK.shape)

masks = st.tuples(st.integers(1, 15), st.integers(1, 15), st.integers(0, 2**32), st.floats(0.1, 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).uniform(size=drawn[:2]) < drawn[3]
)


@given(masks)
def test_polygons_are_valid_and_measure_what_the_table_says(mask):
    gaps = extract_gaps(mask, Grid(0.5, 300.0, 900.0))
    polygons = gap_polygons(gaps)
    assert len(polygons) == len(gaps)
    assert shapely.is_valid(polygons).all()
    assert {polygon.geom_type for polygon in polygons} <= {"MultiPolygon"}
    np.testing.assert_allclose(shapely.area(polygons), gaps.table["gap_area"])
    np.testing.assert_allclose(shapely.length(polygons), gaps.table["perimeter"])
    centres = shapely.centroid(polygons)
    np.testing.assert_allclose(shapely.get_x(centres), gaps.table["x"])
    np.testing.assert_allclose(shapely.get_y(centres), gaps.table["y"])


@given(masks)
def test_pixel_centres_lie_in_the_polygon_of_their_gap(mask):
    gaps = extract_gaps(mask, 2.0)
    rows, columns = np.indices(mask.shape)
    points = shapely.points(2 * (columns + 0.5), -2 * (rows + 0.5))
    covered = np.zeros(mask.shape, int)
    for gap_id, polygon in enumerate(gap_polygons(gaps), 1):
        covered += gap_id * shapely.contains(polygon, points)
    np.testing.assert_array_equal(covered, gaps.labels)


# x and y of gaps by gap_id, printed on the page of test_gaps.PUBLISHED: of the gap's largest part.
FORESTGAPR_POINTS = {
    **{1: (173088.7, 9673197), 10: (173044.2, 9673143), 11: (173038.7, 9673143)},
    **{12: (173182.0, 9673138), 13: (173067.7, 9673121), 14: (173179.9, 9673132)},
}


def test_polygons_lie_where_forestgapr_has_them(shared_data):
    chm, grid = read_dsm(shared_data / "chm_only" / "ALS_CHM_DUC.tif")
    gaps = extract_gaps(chm, grid, threshold=10.0, inclusive=True, min_area=5, max_area=1000)
    polygons = gap_polygons(gaps)
    for gap_id, (x, y) in FORESTGAPR_POINTS.items():
        largest = max(polygons[gap_id - 1].geoms, key=lambda part: part.area)
        assert largest.centroid.x == pytest.approx(x, abs=0.05)
        assert largest.centroid.y == pytest.approx(y, abs=0.5)


def read(path, layer):
    meta, _, geometry, columns = pyogrio.raw.read(path, layer=layer)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], columns, strict=True))


def test_a_geopackage_gives_back_polygons_attributes_and_crs(tmp_path):
    low, high = extract_gaps(MASK, UTM, chm=CHM), extract_gaps(~MASK, UTM)
    write_geopackage(tmp_path / "gaps.gpkg", {"gaps_5m": low, "gaps_7.5m": high})
    listed = pyogrio.list_layers(tmp_path / "gaps.gpkg").tolist()
    assert listed == [["gaps_5m", "MultiPolygon"], ["gaps_7.5m", "MultiPolygon"]]
    for layer, gaps in (("gaps_5m", low), ("gaps_7.5m", high)):
        meta, polygons, columns = read(tmp_path / "gaps.gpkg", layer)
        assert meta["crs"] == "EPSG:32617"
        assert shapely.equals(polygons, gap_polygons(gaps)).all()
        assert tuple(columns) == gaps.table.dtype.names
        for name, values in columns.items():
            np.testing.assert_array_equal(values, gaps.table[name], err_msg=name)
    assert "chm_gini" in low.table.dtype.names
    assert np.isnan(low.table["chm_gini"]).any()  # a gap of one pixel; read back as such above
    assert os.listdir(tmp_path) == ["gaps.gpkg"]


def test_a_layer_without_gaps_has_its_columns(tmp_path):
    gaps = extract_gaps(MASK, UTM, chm=CHM, min_area=1e6)
    write_geopackage(tmp_path / "none.gpkg", {"gaps_5m": gaps})
    meta, polygons, columns = read(tmp_path / "none.gpkg", "gaps_5m")
    assert len(polygons) == 0
    assert tuple(columns) == gaps.table.dtype.names
    assert (meta["geometry_type"], meta["crs"]) == ("MultiPolygon", "EPSG:32617")


def test_a_place_without_crs_is_written_without(tmp_path):
    write_geopackage(tmp_path / "nowhere.gpkg", {"gaps": extract_gaps(MASK, 1.0)})
    assert read(tmp_path / "nowhere.gpkg", "gaps")[0]["crs"] is None


def test_what_is_there_stays_unless_it_may_go(tmp_path):
    path = tmp_path / "gaps.gpkg"
    write_geopackage(path, {"gaps": extract_gaps(MASK, UTM)})
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"gaps\.gpkg exists"):
        write_geopackage(path, {"other": extract_gaps(~MASK, UTM)})
    assert path.read_bytes() == before
    write_geopackage(path, [("other", extract_gaps(~MASK, UTM))], overwrite=True)
    assert pyogrio.list_layers(path)[:, 0].tolist() == ["other"]


def test_a_write_that_fails_leaves_what_was_there_and_no_rest(tmp_path):
    path = tmp_path / "gaps.gpkg"
    write_geopackage(path, {"gaps": extract_gaps(MASK, UTM)})
    before = path.read_bytes()

    def layers():
        yield "one", extract_gaps(MASK, UTM)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        write_geopackage(path, layers(), overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["gaps.gpkg"]


@pytest.mark.parametrize(
    ("name", "layers", "error", "message"),
    [
        ("gaps.shp", ["gaps"], ValueError, "ends in .gpkg"),
        ("no/gaps.gpkg", ["gaps"], FileNotFoundError, "no folder"),
        ("gaps.gpkg", [], ValueError, "no layer to write"),
        ("gaps.gpkg", ["5m"], ValueError, "a name is a letter"),
        ("gaps.gpkg", ["gaps", "gaps"], ValueError, "there twice"),
    ],
)
def test_files_and_layers_that_cannot_be(name, layers, error, message, tmp_path):
    gaps = extract_gaps(MASK, UTM)
    with pytest.raises(error, match=message):
        write_geopackage(tmp_path / name, [(layer, gaps) for layer in layers])
    assert os.listdir(tmp_path) == []


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyogrio.raw", None)
    with pytest.raises(ImportError, match="pip install rasterio shapely pyogrio"):
        write_geopackage(tmp_path / "gaps.gpkg", {"gaps": extract_gaps(MASK, UTM)})
