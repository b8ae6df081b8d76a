import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from rasterio.warp import transform as to_crs

from forestgaps_jax.data.geotiff import write_geotiff
from forestgaps_jax.data.rasters import read_chm, read_dsm, read_site
from forestgaps_jax.types import Grid

SHARED = Path(__file__).parents[3] / "shared" / "data"
LEFT, TOP = 400_000.0, 3_000_000.0
ROWS, COLUMNS = np.mgrid[0:8, 0:10].astype(np.float32)
DSM = 200 + 3 * ROWS + COLUMNS
CHM = (7 * ROWS + 5 * COLUMNS) % 31


def write(path, array, *, place=None, size=1.0, crs="EPSG:32617", nodata=None, **creation):
    """One-band GeoTIFF straight from rasterio, upper left corner at LEFT, TOP."""
    array = np.atleast_3d(array.T).T  # [band row column]
    place = place or Affine(size, 0, LEFT, 0, -size, TOP)
    count, height, width = array.shape
    profile = {"driver": "GTiff", "dtype": array.dtype, "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **profile, transform=place, crs=crs, nodata=nodata, **creation) as out:
        out.write(array)
    return path


@pytest.fixture
def pair(tmp_path):
    """Write a DSM and a CHM, by default the same grid; hands back their paths."""

    def make(dsm=DSM, chm=CHM, *, of_dsm=None, of_chm=None):
        dsm_path = write(tmp_path / "site_DSM.tif", dsm, **(of_dsm or {}))
        return dsm_path, write(tmp_path / "site_CHM.tif", chm, **(of_chm or {}))

    return make


# What is read


def test_same_grid_is_read_as_it_is(pair):
    site = read_site(*pair())
    np.testing.assert_array_equal(site.dsm, DSM)
    np.testing.assert_array_equal(site.chm, CHM)
    assert site.dsm.dtype == site.chm.dtype == np.float32
    assert (site.grid.resolution, site.grid.left, site.grid.top) == (1.0, LEFT, TOP)
    assert rasterio.CRS.from_wkt(site.grid.crs) == rasterio.CRS.from_epsg(32617)
    assert site.valid.all()


def test_name_is_given_or_taken_from_the_dsm(pair, tmp_path):
    dsm, chm = pair()
    assert read_site(dsm, chm).name == "site"
    assert read_site(str(dsm), str(chm), name="plot 7").name == "plot 7"
    assert read_site(write(tmp_path / "DSM.tif", DSM), chm).name == "DSM"


def test_small_negative_canopy_stays(pair):
    assert read_site(*pair(chm=CHM - 0.25)).chm.min() == -0.25


def test_read_dsm_alone(pair):
    heights, grid = read_dsm(pair()[0])
    np.testing.assert_array_equal(heights, DSM)
    assert grid.left == LEFT


# No-data in all its guises


def with_hole(array, value):
    array = array.copy()
    array[2, 3] = value
    return array


def assert_only_hole(heights, expected):
    hole = np.zeros(expected.shape, bool)
    hole[2, 3] = True
    np.testing.assert_array_equal(np.isnan(heights), hole)
    np.testing.assert_array_equal(heights[~hole], expected[~hole])


@pytest.mark.parametrize("nodata", [-9999.0, -32768.0, float(np.finfo(np.float32).min), 0.5, np.nan])
def test_declared_nodata(pair, nodata):
    site = read_site(*pair(chm=with_hole(CHM, nodata), of_chm={"nodata": nodata}))
    assert_only_hole(site.chm, CHM)
    np.testing.assert_array_equal(site.dsm, DSM)
    assert not site.valid[2, 3]
    assert site.valid.sum() == site.valid.size - 1


UNDECLARED = [np.nan, np.inf, -np.inf, -9999, -32768, -32767, 3.4e38, -3.4028235e38, 1e20]


@pytest.mark.parametrize("value", UNDECLARED)
def test_fault_16_undeclared_nodata(pair, value):
    site = read_site(*pair(with_hole(DSM, value)))
    assert_only_hole(site.dsm, DSM)
    site = read_site(*pair(chm=with_hole(CHM, value)))
    assert_only_hole(site.chm, CHM)


def test_float64_beyond_float32(pair):
    assert_only_hole(read_site(*pair(with_hole(DSM.astype(np.float64), 1e300))).dsm, DSM)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint16])
def test_integers_with_nodata_are_metres(pair, dtype):
    empty = np.iinfo(dtype).min
    chm = with_hole(CHM.astype(dtype) + 1, empty)
    site = read_site(*pair(chm=chm, of_chm={"nodata": empty}))
    assert_only_hole(site.chm, CHM + 1)


def test_mask_band(pair):
    dsm, chm = pair()
    mask = with_hole(np.full(CHM.shape, 255, np.uint8), 0)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(chm, "r+") as out:
        out.write_mask(mask)
    assert_only_hole(read_site(dsm, chm).chm, CHM)


def test_mask_band_does_not_hide_declared_nodata(pair):
    dsm, chm = pair(chm=with_hole(CHM, 77), of_chm={"nodata": 77})
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(chm, "r+") as out:
        out.write_mask(np.full(CHM.shape, 255, np.uint8))
    assert_only_hole(read_site(dsm, chm).chm, CHM)


def test_alpha_band(pair):
    alpha = with_hole(np.full(CHM.shape, 255, np.float32), 0)
    dsm, chm = pair(chm=np.stack([CHM, alpha]))
    with rasterio.open(chm, "r+") as out:
        out.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    assert_only_hole(read_site(dsm, chm).chm, CHM)


def test_scale_and_offset_are_applied_after_nodata(pair):
    raw = with_hole((CHM * 10).astype(np.int16), -1)
    dsm, chm = pair(chm=raw, of_chm={"nodata": -1})
    with rasterio.open(chm, "r+") as out:
        out.scales, out.offsets = [0.1], [2.0]
    heights = read_site(dsm, chm).chm
    assert_only_hole(np.round(heights, 3), CHM + 2)


@pytest.mark.parametrize(("unit", "metres"), [("ft", 0.3048), ("US survey foot", 0.3048006), ("metre", 1.0)])
def test_declared_height_unit_is_applied(pair, unit, metres):
    dsm, chm = pair()
    with rasterio.open(chm, "r+") as out:
        out.units = [unit]
    np.testing.assert_allclose(read_site(dsm, chm).chm, CHM * metres, rtol=1e-6)


# Onto the DSM's grid


def test_finer_chm_gives_the_highest_known_in_each_pixel(pair):
    fine = np.array(
        [
            [1, 2, 9, 9, -9999, -9999],
            [3, 4, 9, 8, -9999, -9999],
            [5, -9999, 0, 0, 0, 7],
            [-9999, -9999, 0, 1, 0, 0],
        ],
        np.float32,
    )
    dsm = np.full((2, 3), 100, np.float32)
    site = read_site(*pair(dsm, fine, of_chm={"size": 0.5, "nodata": -9999}))
    np.testing.assert_array_equal(site.chm, [[4, 9, np.nan], [5, 1, 7]])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_finer_chm_by_a_whole_factor_is_the_block_maximum(pair, factor):
    fine = np.random.default_rng(0).uniform(0, 40, (8 * factor, 10 * factor)).astype(np.float32)
    site = read_site(*pair(chm=fine, of_chm={"size": 1 / factor}))
    blocks = [[fine[r * factor :, c * factor :][:factor, :factor].max() for c in range(10)] for r in range(8)]
    np.testing.assert_array_equal(site.chm, blocks)


def test_finer_chm_by_a_broken_factor_looks_at_the_pixel_and_no_further(pair):
    fine = np.random.default_rng(1).uniform(0, 40, (25, 31)).astype(np.float32)
    site = read_site(*pair(chm=fine, of_chm={"size": 0.33}))
    for (row, column), height in np.ndenumerate(site.chm):
        edges = [int(edge / 0.33) for edge in (row, row + 1, column, column + 1)]
        inside = fine[edges[0] : edges[1] + 1, edges[2] : edges[3] + 1]
        assert np.median(inside) < height <= inside.max()


def test_coarser_chm_is_repeated_and_its_nodata_does_not_spread(pair):
    coarse = np.array([[0, 20, 3, 9, 1], [5, -9999, 30, 2, 0]], np.float32)
    dsm = np.full((4, 10), 100, np.float32)
    site = read_site(*pair(dsm, coarse, of_chm={"size": 2.0, "nodata": -9999}))
    expected = np.where(coarse == -9999, np.nan, coarse).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(site.chm, expected)


@pytest.mark.parametrize(("down", "right"), [(2, 3), (-2, -3), (0, 4), (-3, 1)])
def test_shift_by_whole_pixels_is_an_exact_copy_of_the_overlap(pair, down, right):
    place = Affine(1, 0, LEFT + right, 0, -1, TOP - down)
    site = read_site(*pair(of_chm={"place": place}))
    canvas = np.full((20, 20), np.nan, np.float32)
    canvas[5 + down :, 5 + right :][:8, :10] = CHM
    rows, columns = slice(max(down, 0), 8 + min(down, 0)), slice(max(right, 0), 10 + min(right, 0))
    np.testing.assert_array_equal(site.dsm, DSM[rows, columns])
    np.testing.assert_array_equal(site.chm, canvas[5:13, 5:15][rows, columns])
    assert (site.grid.left, site.grid.top) == (LEFT + max(right, 0), TOP - max(down, 0))


def test_part_of_a_pixel_takes_the_nearest(pair):
    place = Affine(1, 0, LEFT + 0.3, 0, -1, TOP + 0.3)
    site = read_site(*pair(of_chm={"place": place}))
    np.testing.assert_array_equal(site.chm, CHM)


def test_small_chm_crops_and_half_pixels_at_its_edge_count(pair):
    place = Affine(0.5, 0, LEFT + 2, 0, -0.5, TOP - 3.5)
    site = read_site(*pair(chm=np.full((5, 8), 12, np.float32), of_chm={"place": place}))
    assert site.shape == (3, 4)
    assert (site.grid.left, site.grid.top) == (LEFT + 2, TOP - 3)
    assert (site.chm == 12).all()


def smooth(x, y):
    return 15 + 10 * np.sin(x / 60) * np.cos(y / 80)


@pytest.mark.parametrize(("code", "size"), [(32616, 1.0), (32616, 0.5), (3086, 1.0)])
def test_another_crs_gives_the_same_heights_at_the_same_places(pair, code, size):
    dsm_crs, chm_crs = rasterio.CRS.from_epsg(32617), rasterio.CRS.from_epsg(code)
    (x,), (y,) = to_crs(dsm_crs, chm_crs, [LEFT + 60], [TOP - 40])
    side = int(300 / size)
    place = Affine(size, 0, round(x) - 150, 0, -size, round(y) + 150)
    columns, rows = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    xs, ys = place.c + size * columns, place.f - size * rows
    utm_x, utm_y = to_crs(chm_crs, dsm_crs, xs.ravel(), ys.ravel())
    chm = smooth(np.array(utm_x) - LEFT, np.array(utm_y) - TOP).reshape(side, side).astype(np.float32)
    dsm = np.full((80, 120), 100, np.float32)
    site = read_site(*pair(dsm, chm, of_chm={"place": place, "crs": chm_crs}))
    columns, rows = np.meshgrid(np.arange(120) + 0.5, np.arange(80) + 0.5)
    assert site.shape == (80, 120)
    # Within a pixel's diagonal of the nearest pixel, or of the highest one, times the steepest slope.
    np.testing.assert_allclose(site.chm, smooth(columns, -rows), atol=1.42 * 10 / 60)


def test_south_up_rasters_are_turned(pair):
    place = Affine(1, 0, LEFT, 0, 1, TOP - 8)
    site = read_site(*pair(DSM[::-1], of_dsm={"place": place}))
    np.testing.assert_array_equal(site.dsm, DSM)
    np.testing.assert_array_equal(site.chm, CHM)
    assert site.grid.top == TOP
    site = read_site(*pair(chm=CHM[::-1], of_chm={"place": place}))
    np.testing.assert_array_equal(site.chm, CHM)


def test_no_crs_in_both_is_one_unnamed_frame(pair):
    of_dsm, of_chm = ({"crs": None, "place": Affine(1, 0, left, 0, -1, 8)} for left in (0, 2))
    site = read_site(*pair(of_dsm=of_dsm, of_chm=of_chm))
    assert site.grid == Grid(1.0, 2.0, 8.0, None)
    np.testing.assert_array_equal(site.chm, CHM[:, :8])


# What is refused


def refused(paths, *words, error=ValueError):
    with pytest.raises(error) as caught:
        read_site(*paths)
    for word in words:
        assert str(word) in str(caught.value)


def test_degrees(pair):
    place = Affine(1e-5, 0, -81.0, 0, -1e-5, 29.5)
    degrees = {"place": place, "crs": "EPSG:4326"}
    dsm, chm = pair(of_dsm=degrees, of_chm=degrees)
    refused((dsm, chm), dsm, "degrees", "gdalwarp -t_srs EPSG:32617")
    dsm, chm = pair(of_chm=degrees)
    refused((dsm, chm), chm, "degrees", "gdalwarp -t_srs EPSG:32617")
    south = {"place": Affine(1e-5, 0, 147.0, 0, -1e-5, -42.0), "crs": "EPSG:4326"}
    refused(pair(of_dsm=south), "EPSG:32755")


def test_feet(pair):
    dsm, chm = pair(of_dsm={"crs": "EPSG:2236", "place": Affine(3, 0, 656_166, 0, -3, 1_000_000)})
    refused((dsm, chm), dsm, "foot", "0.3048", "gdalwarp -t_srs EPSG:32617")


def test_web_mercator(pair):
    dsm, chm = pair(of_dsm={"crs": "EPSG:3857", "place": Affine(1, 0, -9_016_878, 0, -1, 3_440_000)})
    refused((dsm, chm), dsm, "Mercator", "EPSG:32617")


def test_crs_in_one_only(pair):
    dsm, chm = pair(of_chm={"crs": None})
    refused((dsm, chm), chm, "the CHM names no CRS", "gdal_edit.py -a_srs")
    dsm, chm = pair(of_dsm={"crs": None})
    refused((dsm, chm), dsm, "the DSM names no CRS", "gdal_edit.py -a_srs")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_no_place_on_the_ground(pair, tmp_path):
    bare = tmp_path / "bare.tif"
    with rasterio.open(bare, "w", driver="GTiff", dtype="float32", count=1, height=8, width=10) as out:
        out.write(DSM, 1)
    refused((bare, pair()[1]), bare, "no place on the ground", "gdal_edit.py")


def test_rotated_dsm(pair):
    dsm, chm = pair(of_dsm={"place": Affine(0.8, 0.6, LEFT, 0.6, -0.8, TOP)})
    refused((dsm, chm), dsm, "rotated", "gdalwarp -tr 1 1")


def test_pixels_not_square(pair):
    dsm, chm = pair(of_dsm={"place": Affine(1, 0, LEFT, 0, -1.02, TOP)})
    refused((dsm, chm), dsm, "1 x 1.02", "gdalwarp -tr")
    read_site(*pair(of_dsm={"place": Affine(1, 0, LEFT, 0, -1.005, TOP)}))


def test_pixels_so_little_off_square_that_a_long_raster_drifts(pair):
    long = {"place": Affine(1, 0, LEFT, 0, -1.005, TOP)}
    refused(pair(np.zeros((400, 2), np.float32), of_dsm=long), "not square")


def test_missing_file_names_the_near_ones(pair, tmp_path):
    dsm, chm = pair()
    refused(
        (tmp_path / "site_DMS.tif", chm), tmp_path / "site_DMS.tif", "site_DSM.tif", error=FileNotFoundError
    )
    refused((dsm, tmp_path / "no" / "zzz.tif"), "zzz.tif", "check the folder", error=FileNotFoundError)


def test_not_a_raster(pair, tmp_path):
    text = tmp_path / "notes.tif"
    text.write_text("heights to follow")
    refused((pair()[0], text), text, "not a raster")
    refused((tmp_path, pair()[1]), tmp_path, "not a raster")


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.01])
def test_fault_16_a_truncated_file_is_an_error_and_no_zeros(tmp_path, pair, kept, compress):
    noise = np.random.default_rng(2).uniform(100, 200, (200, 300)).astype(np.float32)
    dsm = write(tmp_path / "big.tif", noise, compress=compress)
    dsm.write_bytes(dsm.read_bytes()[: int(dsm.stat().st_size * kept)])
    refused((dsm, pair()[1]), dsm, "cut off")


def test_more_than_one_band(pair):
    dsm, chm = pair(chm=np.stack([CHM, CHM, CHM]))
    with rasterio.open(chm, "r+") as out:
        out.set_band_description(2, "p95")
    refused((dsm, chm), chm, "2 p95", "gdal_translate -b 1")


def test_no_overlap_tells_both_extents(pair):
    dsm, chm = pair(of_chm={"place": Affine(1, 0, LEFT + 500, 0, -1, TOP)})
    refused((dsm, chm), dsm, chm, "do not overlap", "(400000.0, 2999992.0, 400010.0, 3000000.0)", "400500.0")
    refused(pair(of_chm={"crs": "EPSG:32633"}), "do not overlap")


def test_no_valid_pixel(pair):
    dsm, chm = pair(DSM + 1000, np.full(CHM.shape, -9999, np.float32), of_chm={"nodata": -9999})
    refused((dsm, chm), dsm, chm, "no valid pixel", "80 and 0 known")
    half = np.where(COLUMNS < 5, np.nan, 1).astype(np.float32)
    refused(pair(DSM * half, CHM * half[:, ::-1]), "no valid pixel")


def test_the_same_raster_twice(pair):
    dsm, chm = pair(chm=DSM - 150, dsm=DSM - 150)
    refused((dsm, chm), chm, "the same raster was given twice")
    refused((dsm, dsm), dsm, "the same raster was given twice")


def test_swapped(pair):
    refused(pair(CHM, DSM), "swapped")
    refused(pair(CHM, CHM + 40), "swapped")


def test_ground_below_sea_level_is_no_swap(pair):
    assert read_site(*pair(CHM - 4, CHM)).valid.all()


def test_without_rasterio(pair, monkeypatch):
    paths = pair()
    monkeypatch.setitem(sys.modules, "rasterio", None)
    refused(paths, "pip install rasterio", error=ImportError)


# Writing


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(-400, 8000, width=32) | st.just(float("nan")),
    ),
    st.sampled_from([Grid(0.5, LEFT, TOP, "EPSG:32617"), Grid(1.0), Grid(1 / 3, -7.25, 1e6, None)]),
    st.sampled_from([-9999.0, float("nan"), -32768.0]),
)
def test_what_is_written_is_read_back(tmp_path_factory, array, grid, nodata):
    path = tmp_path_factory.mktemp("round") / "a.tif"
    write_geotiff(path, array, grid, nodata)
    heights, back = read_dsm(path)
    np.testing.assert_array_equal(heights, array)
    assert back.resolution == pytest.approx(grid.resolution, rel=1e-15)
    assert (back.left, back.top) == (grid.left, grid.top)
    assert (back.crs is None) == (grid.crs is None)
    write_geotiff(path, heights, back, nodata)
    assert read_dsm(path)[1] == back


def test_written_file_is_tiled_and_deflated_with_nodata(tmp_path):
    write_geotiff(
        tmp_path / "a.tif", with_hole(CHM, np.inf).astype(np.float64), Grid(2.0, LEFT, TOP, "EPSG:32617")
    )
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.count == 1
        assert file.dtypes == ("float32",)
        assert file.nodata == -9999
        assert file.profile["tiled"]
        assert file.profile["compress"] == "deflate"
        assert file.crs.to_epsg() == 32617
        assert file.transform == Affine(2, 0, LEFT, 0, -2, TOP)
        np.testing.assert_array_equal(file.read(1), with_hole(CHM, -9999))


def test_writing_refuses_what_would_be_lost(tmp_path):
    with pytest.raises(ValueError, match="choose another nodata"):
        write_geotiff(tmp_path / "a.tif", with_hole(CHM, -9999), Grid(1.0))
    with pytest.raises(FileNotFoundError, match="make it first"):
        write_geotiff(tmp_path / "no" / "a.tif", CHM, Grid(1.0))


# Real rasters


def real(name):
    dsm, chm = (SHARED / name.split("_")[0] / f"{name}_{kind}.tif" for kind in ("DSM", "CHM"))
    if not (dsm.exists() and chm.exists()):
        pytest.skip(f"{SHARED} with the real rasters is not here")
    return dsm, chm


def gap_fractions(site):
    heights = site.chm[site.valid]
    return np.array([(heights < threshold).mean() for threshold in (2, 5, 10, 15, 20)])


@pytest.mark.parametrize(
    ("name", "shape", "fractions"),
    [
        ("bcts_100", (1063, 207), [0.18, 0.27, 0.48, 0.74, 0.93]),
        ("bcts_050", (2125, 414), [0.28, 0.38, 0.59, 0.82, 0.96]),
        ("osbs_100", (200, 200), [0.39, 0.45, 0.71, 0.96, 1.0]),
        ("ign_200", (500, 1000), [0.87, 0.92, 0.97, 0.99, 1.0]),
    ],
)
def test_gap_fractions_of_real_sites(name, shape, fractions):
    site = read_site(*real(name))
    assert site.shape == shape
    np.testing.assert_allclose(gap_fractions(site), fractions, atol=0.006)  # rounded twice


def test_a_real_finer_chm_keeps_the_gaps_of_the_coarse_one():
    (dsm, chm), (_, fine) = real("bcts_100"), real("bcts_050")
    own, site = read_site(dsm, chm), read_site(dsm, fine)
    assert site.shape == own.shape
    np.testing.assert_allclose(gap_fractions(site), gap_fractions(own), atol=0.015)
    both = own.valid & site.valid
    labels, others = own.chm[both] < 10, site.chm[both] < 10
    assert (labels & others).sum() / (labels | others).sum() > 0.97


def test_a_real_coarser_chm_keeps_its_own_gaps():
    (dsm, _), (_, coarse) = real("bcts_050"), real("bcts_100")
    own = read_site(*real("bcts_100"))
    np.testing.assert_allclose(gap_fractions(read_site(dsm, coarse)), gap_fractions(own), atol=0.005)


# Canopy heights alone


def test_canopy_heights_alone_stand_on_flat_ground(tmp_path):
    chm = CHM.copy()
    chm[2, 3:5] = -9999
    chm[0, 0], chm[0, 1] = -0.4, 3.4e38
    site = read_chm(write(tmp_path / "plot_CHM.tif", chm, size=0.5, nodata=-9999))
    unknown = (chm == -9999) | (chm > 1e38)
    for heights in (site.dsm, site.chm):
        np.testing.assert_array_equal(heights, np.where(unknown, np.nan, chm))
        assert heights.dtype == np.float32
    np.testing.assert_array_equal(site.valid, ~unknown)
    assert (site.name, site.grid.resolution, site.grid.left, site.grid.top) == ("plot", 0.5, LEFT, TOP)
    assert rasterio.CRS.from_wkt(site.grid.crs) == rasterio.CRS.from_epsg(32617)
    assert read_chm(tmp_path / "plot_CHM.tif", name="mine").name == "mine"


def test_canopy_heights_whose_rows_run_north_are_turned(tmp_path):
    place = Affine(1, 0, LEFT, 0, 1, TOP - 8)
    site = read_chm(write(tmp_path / "up.tif", CHM[::-1], place=place))
    np.testing.assert_array_equal(site.chm, CHM)
    assert site.grid.top == TOP


def test_canopy_heights_are_bounded_as_those_of_a_pair(pair):
    """No tree is 200 m high, though many a surface is."""
    chm = CHM.copy()
    chm[1, 1] = 200
    paths = pair(chm=chm)
    alone, of_pair = read_chm(paths[1]), read_site(*paths)
    assert np.isnan(alone.chm[1, 1])
    np.testing.assert_array_equal(alone.chm, of_pair.chm)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crs": "EPSG:4326", "place": Affine(1e-5, 0, 8, 0, -1e-5, 47)}, "degrees"),
        ({"place": Affine(1, 0, LEFT, 0, -2, TOP)}, "not square"),
        ({"place": Affine.identity(), "crs": None}, "no place on the ground"),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_canopy_heights_without_square_metres_are_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=rf"plot_CHM\.tif.*{said}"):
        read_chm(write(tmp_path / "plot_CHM.tif", CHM, **options))


def test_a_missing_canopy_height_raster_is_named(tmp_path):
    write(tmp_path / "plot_CHM.tif", CHM)
    with pytest.raises(FileNotFoundError, match=r"plot_CMH\.tif: no such file.*plot_CHM\.tif"):
        read_chm(tmp_path / "plot_CMH.tif")
