"""Damaged and odd GeoTIFFs: only the documented errors come out, and no height for bytes that are not there.

The default run is short. A long one, of new inputs each time: of each test

    FORESTGAPS_FUZZ_EXAMPLES=20000 pytest tests/data/test_fuzz_geotiff.py
"""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import rasterio
from hypothesis import given, reject
from hypothesis import strategies as st
from rasterio.transform import Affine
from rasterio.windows import Window

from forestgaps_jax.data import geotiff, rasters, read_chm, read_dsm, read_site
from forestgaps_jax.data.geotiff import CHM_BOUNDS, DSM_BOUNDS, HeightFile, open_heights
from tests.data.test_rasters import LEFT, TOP, refused, write
from tests.fuzzing import fuzzed

SHAPE = 24, 40
HEIGHTS = np.random.default_rng(0).integers(1, 120, SHAPE).astype(np.float32)
KNOWN = HEIGHTS.copy()
KNOWN[3:9, 4:12] = np.nan
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
UP, DOWN = Affine(1, 0, LEFT, 0, 1, TOP - SHAPE[0]), Affine(1, 0, LEFT, 0, -1, TOP)

# How the pixels lie in the file, and how it says which are not known.
FILES = {
    "strips": {"nodata": -99, "blockysize": 5},
    "one strip": {"nodata": -99},
    "tiles": {"nodata": -99, **TILED},
    "deflate": {"nodata": -99, "compress": "deflate", "predictor": 3, **TILED},
    "lzw": {"dtype": "int16", "nodata": -99, "compress": "lzw", "predictor": 2, "blockysize": 8},
    "packbits": {"dtype": "int32", "nodata": -99, "compress": "packbits"},
    "zstd": {"nodata": -99, "compress": "zstd"},
    "float64": {"dtype": "float64", "nodata": math.nan, "compress": "lzw"},
    "mask": {"dtype": "uint8", "unknown": "mask", "compress": "deflate"},
    "mask in tiles": {"unknown": "mask", "compress": "lzw", **TILED},
    "alpha": {"unknown": "alpha", "compress": "deflate", **TILED},
    "alpha apart": {"dtype": "uint16", "unknown": "alpha", "interleave": "band"},
    "scaled": {"dtype": "int16", "nodata": -99, "scale": 0.5, "compress": "deflate"},
    "BigTIFF": {"nodata": -99, "BIGTIFF": "YES", "compress": "deflate"},
    "big-endian": {"nodata": -99, "ENDIANNESS": "BIG", "blockysize": 5},
    "rows run north": {"nodata": -99, "place": UP},
    "no CRS": {"nodata": -99, "crs": None},
}


def written(path, *, dtype="float32", unknown="nodata", nodata=None, scale=1.0, place=DOWN, **options):
    """Write KNOWN, whichever way the file says what is not known; give back the path."""
    raw = np.where(np.isnan(KNOWN), 77 if nodata is None else nodata, KNOWN / scale).astype(dtype)
    raw = raw[::-1] if place.e > 0 else raw
    known = np.where(np.isnan(KNOWN), 0, 255).astype(dtype)
    bands = [raw, known] if unknown == "alpha" else [raw]
    options = {"crs": "EPSG:32617", "nodata": nodata, "transform": place, **options}
    if unknown == "alpha":
        options |= {"photometric": "MINISBLACK", "ALPHA": "YES"}
    profile = {"driver": "GTiff", "dtype": dtype, "count": len(bands), "height": SHAPE[0], "width": SHAPE[1]}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **profile, **options) as out,
    ):
        out.write(np.stack(bands))
        if unknown == "mask":
            out.write_mask(known > 0)
        if scale != 1.0:
            out.scales = [scale]
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of each file."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: written(folder / f"{name}.tif", **options).read_bytes() for name, options in FILES.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.tif"


@pytest.fixture
def other(tmp_path):
    """A raster that lies where the others do, and is another."""
    return write(tmp_path / "other.tif", HEIGHTS[::-1] + 1)


@pytest.fixture
def small(monkeypatch):
    """No more memory than for these: what a broken header claims is not allocated."""
    for module in (geotiff, rasters):
        monkeypatch.setattr(module, "MOST_PIXELS", 2**20)


def heights_of(read, *paths):
    """What a reader makes of a file: sound heights, or None where it is refused as documented."""
    try:
        result = read(*paths)
    except ValueError as error:
        problem = error
    else:
        heights, grid = result if isinstance(result, tuple) else (result.chm, result.grid)
        assert heights.dtype == np.float32
        assert 0 < grid.resolution < math.inf
        assert math.isfinite(grid.left)
        assert math.isfinite(grid.top)
        low, high = DSM_BOUNDS if read is read_dsm else CHM_BOUNDS
        assert (np.isnan(heights) | ((heights >= low) & (heights <= high))).all()
        return heights
    assert type(problem) is ValueError, repr(problem)
    assert len(str(problem)) < 5000
    assert any(str(path) in str(problem) for path in paths)
    return None


def read_in_any_way(path, other):
    for read, paths in [
        (read_dsm, [path]),
        (read_chm, [path]),
        (read_site, [path, other]),
        (read_site, [other, path]),
    ]:
        heights_of(read, *paths)


# Damaged files


@pytest.mark.parametrize("name", FILES)
def test_the_files_to_be_damaged_are_read_as_they_are(files, path, name):
    path.write_bytes(files[name])
    np.testing.assert_array_equal(read_dsm(path)[0], KNOWN)


@pytest.mark.parametrize("name", FILES)
@fuzzed(12)
@given(share=st.floats(0, 1))
def test_a_file_cut_off_anywhere_is_refused(files, path, name, share):
    path.write_bytes(files[name][: int(share * (len(files[name]) - 1))])
    assert heights_of(read_dsm, path) is None


def entries(raw):
    """Places of the entries in all directories of what may be a TIFF; width of an offset; byte order."""
    order, wide = ("<" if raw[:2] == b"II" else ">"), 8 if 43 in raw[2:4] else 4
    number, length = order + ("Q" if wide == 8 else "L"), 20 if wide == 8 else 12
    found, seen, place = [], set(), wide
    while len(raw) >= place + wide and (start := struct.unpack_from(number, raw, place)[0]) not in seen:
        seen.add(start)
        if not start or start + wide > len(raw):
            break
        count = struct.unpack_from(order + ("Q" if wide == 8 else "H"), raw, start)[0]
        first = start + (8 if wide == 8 else 2)
        place = first + min(count, 100) * length
        found += range(first, place, length)
    return [place for place in found if place + length <= len(raw)], wide, order


TAGS = [256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 330, 338, 339]
TAGS += [33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113]
COUNTS = [0, 1, 2, 3, 7, 16, 255, 256, 1000, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
REALS = [0.0, -1.0, 1e-6, 1e-3, 0.5, 2.0, 1e10, 1e308, 5e-324, math.nan, math.inf, -math.inf]


def damage(draw, raw):
    """One change of a file's bytes, more often in its head than elsewhere."""
    spot = draw(st.integers(0, len(raw) - 1) | st.integers(0, min(len(raw), 600) - 1))
    length = draw(st.sampled_from([1, 1, 2, 4, 8, 30]))
    kind = draw(
        st.sampled_from(["bit", "bytes", "filled", "cut off", "cut out", "doubled", *["entry"] * 4, "real"])
    )
    places, wide, order = entries(raw)
    if kind == "bit":
        raw[spot] ^= 1 << draw(st.integers(0, 7))
    elif kind == "bytes":
        raw[spot : spot + length] = draw(st.binary(min_size=length, max_size=length))
    elif kind == "filled":
        raw[spot : spot + length] = draw(st.sampled_from([b"\0", b"\xff", b"\x7f"])) * length
    elif kind == "cut off":
        del raw[spot:]
    elif kind == "cut out":
        del raw[spot : spot + length]
    elif kind == "doubled":
        raw[spot:spot] = raw[spot : spot + length]
    elif places:
        place = draw(st.sampled_from(places))
        if kind == "real":
            kind, count = struct.unpack_from(f"{order}H{'Q' if wide == 8 else 'L'}", raw, place + 2)
            spot = int.from_bytes(raw[place + 4 + wide :][:wide], "little" if order == "<" else "big")
            if kind == 12 and spot + 8 * count <= len(raw):
                struct.pack_into(
                    f"{order}d",
                    raw,
                    spot + 8 * draw(st.integers(0, 5)) % (8 * count),
                    draw(st.sampled_from(REALS)),
                )
            return
        field = draw(st.sampled_from(["tag", "type", "count", "value", "short"]))
        number = draw(st.sampled_from({"tag": TAGS, "type": list(range(20))}.get(field, COUNTS)))
        where = {"tag": 0, "type": 2, "count": 4}.get(field, 4 + wide)
        size = wide if field in ("count", "value") else 2
        raw[place + where : place + where + size] = (number % 256**size).to_bytes(
            size, "little" if order == "<" else "big"
        )


@pytest.mark.parametrize("name", FILES)
@fuzzed(20)
@given(data=st.data())
def test_a_damaged_file_is_heights_or_refused(small, files, path, other, name, data):
    raw = bytearray(files[name])
    for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 3, 6]))):
        if len(raw) > 8:
            damage(data.draw, raw)
    path.write_bytes(raw)
    read_in_any_way(path, other)


# Odd headers

SYSTEMS = [
    None,
    "EPSG:32617",
    "EPSG:32617+5773",  # with heights above the geoid
    "EPSG:32616",
    "EPSG:27700",
    "EPSG:2236",
    "EPSG:3857",
    "EPSG:4326",
    "EPSG:4978",
    "EPSG:5773",
    "EPSG:5041",
    "+proj=utm +zone=17 +units=km",
    "+proj=geos +h=35785831 +lon_0=0",
    "+proj=ortho +lat_0=90",
    'LOCAL_CS["plot",UNIT["metre",1]]',
    'LOCAL_CS["plot",UNIT["foot",0.3048]]',
    'ENGCRS["plot",EDATUM["post"],CS[Cartesian,2],AXIS["e",east],AXIS["n",north],LENGTHUNIT["km",1000]]',
]
KINDS = ["uint8", "int8", "int16", "uint32", "int64", "uint64", "float32", "float64", "complex64"]
SIDES = st.sampled_from([1.0, 1.0, 0.5, *REALS])
EDGES = st.sampled_from([LEFT, LEFT, TOP, *REALS])
SCALES = st.sampled_from([1.0, 1.0, 0.1, *REALS])


UNITS = {"": 1.0, "m": 1.0, "metre": 1.0, "ft": 0.3048, "é": 1.0}
TURNS = [(0.0, 0.0)] * 4 + [(0.3, 0.3), (1.0, 1.0), (math.nan, 0.0)]
HEADERS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "system": st.sampled_from(SYSTEMS),
        "place": st.tuples(SIDES, SIDES, EDGES, EDGES, st.sampled_from(TURNS)),
        "nodata": st.sampled_from([None, None, -9999.0, 0.0, 0.1, 3.0, 3.4e38, *REALS]),
        "scale": SCALES,
        "offset": st.sampled_from([0.0, 0.0, -5.0, *REALS]),
        "unit": st.sampled_from(list(UNITS)),
    }
)


def written_with(path, *, kind, system, place, nodata, scale, offset, unit):
    """Write HEIGHTS under any header that rasterio writes; give back the heights that the file then has."""
    wide, high, left, top, turn = place
    profile = {"driver": "GTiff", "dtype": kind, "count": 1, "height": SHAPE[0], "width": SHAPE[1]}
    try:
        with rasterio.open(
            path,
            "w",
            **profile,
            crs=system,
            nodata=nodata,
            transform=Affine(wide, turn[0], left, turn[1], -high, top),
        ) as out:
            out.write(HEIGHTS.astype(kind), 1)
            out.scales, out.offsets, out.units = [scale], [offset], [unit]
        with rasterio.open(path) as file:
            # GDAL does not write all: a no-data value of 9e18 becomes 9, a vertical CRS takes the scale away.
            nodata, scale, offset = file.nodata, file.scales[0], file.offsets[0]
    except (ValueError, OverflowError, RuntimeWarning):  # a no-data value that the type cannot hold
        reject()
    with np.errstate(all="ignore"):
        heights = (HEIGHTS.astype(float) * scale + offset) * UNITS[unit]
        heights[(nodata == HEIGHTS) | ~((heights >= DSM_BOUNDS[0]) & (heights <= DSM_BOUNDS[1]))] = np.nan
    return heights if high > 0 else heights[::-1]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@fuzzed(80)
@given(header=HEADERS)
def test_an_odd_header_is_a_place_of_its_heights_or_refused(small, tmp_path_factory, other, header):
    path = tmp_path_factory.mktemp("odd") / "a.tif"  # GDAL writes some of it beside the file
    expected = written_with(path, **header)
    read_in_any_way(path, other)
    heights = heights_of(read_dsm, path)
    if heights is not None:
        np.testing.assert_allclose(heights, expected, rtol=1e-6, atol=1e-6)


# What was found


@pytest.mark.parametrize("name", ["mask", "mask in tiles"])
def test_a_file_cut_off_before_its_mask_is_refused(files, path, name):
    """GDAL reads on without the mask, and unknown pixels become heights."""
    path.write_bytes(files[name][: entries(files[name])[0][-1]])
    with pytest.raises(ValueError, match=r"a\.tif: not a raster or cut off; renew it \(it has \d+ bytes"):
        read_dsm(path)


def test_a_file_cut_off_before_its_scale_is_refused(files, path):
    """GDAL reads on without the scale, and half metres become metres."""
    path.write_bytes(files["scaled"][:-5])
    with pytest.raises(ValueError, match=r"a\.tif: not a raster or cut off; renew it \(it has \d+ bytes"):
        read_dsm(path)


@pytest.mark.parametrize(
    "layout", [{"blockysize": 5}, TILED, {**TILED, "compress": "deflate"}, {"interleave": "band"}]
)
@pytest.mark.parametrize("nodata", [None, -9999])
def test_blocks_that_were_never_written_are_not_known(path, layout, nodata):
    """GDAL reads them as 0 where no no-data value is declared."""
    profile = {
        "driver": "GTiff",
        "dtype": "float32",
        "height": SHAPE[0],
        "width": SHAPE[1],
        "crs": "EPSG:32617",
    }
    options = {"count": 1, "transform": DOWN, "nodata": nodata, "SPARSE_OK": True, "blockysize": 5, **layout}
    with rasterio.open(path, "w", **profile, **options) as out:
        rows, columns = out.block_shapes[0]
        high = min(rows, SHAPE[0] - rows)
        out.write(np.full((high, columns), 7, np.float32), 1, window=Window(0, rows, columns, high))
    expected = np.full(SHAPE, np.nan)
    expected[rows : rows + high, :columns] = 7
    np.testing.assert_array_equal(read_dsm(path)[0], expected)
    with open_heights(path) as file:
        np.testing.assert_array_equal(file.read(rows - 2, rows + 1), expected[rows - 2 : rows + 1])


def test_tiles_whose_lengths_are_lost_are_not_known(files, path):
    raw = bytearray(files["tiles"])
    places, _, order = entries(raw)
    (lengths,) = (place for place in places if struct.unpack_from(f"{order}H", raw, place) == (325,))
    struct.pack_into(f"{order}L", raw, lengths + 4, 4)
    path.write_bytes(raw)
    expected = KNOWN.copy()
    expected[:16, 16 * 4 :] = expected[16:, 16:] = np.nan  # three tiles a row: four are there
    np.testing.assert_array_equal(read_dsm(path)[0], expected)


@pytest.mark.parametrize(
    "place",
    [
        Affine(1, 0, LEFT, 0, 0, TOP),
        Affine(0, 0, LEFT, 0, 0, TOP),
        Affine(math.nan, 0, LEFT, 0, -1, TOP),
        Affine(1, 0, LEFT, 0, math.nan, TOP),
        Affine(math.inf, 0, LEFT, 0, -math.inf, TOP),
        Affine(1e308, 0, LEFT, 0, -1e308, TOP),
        Affine(5e-324, 0, LEFT, 0, -5e-324, TOP),
        Affine(1, 0, math.nan, 0, -1, TOP),
        Affine(1, 0, LEFT, 0, -1, math.inf),
        Affine(1, 0, 1e300, 0, -1, TOP),
        Affine(1, 1, LEFT, 1, 1, TOP),
    ],
    ids=lambda place: "x".join(f"{number:g}" for number in place[:6]),
)
def test_a_place_that_cannot_be_is_refused_in_either_raster(tmp_path, other, place):
    odd = write(tmp_path / "odd.tif", HEIGHTS, place=place)
    refused((odd, other), odd, "no place on the ground", "gdal_edit.py -a_srs")
    refused((other, odd), odd, "no place on the ground")


@pytest.mark.parametrize(
    ("scale", "offset"), [(0, 0), (math.nan, 0), (math.inf, 0), (1, math.nan), (1, -math.inf)]
)
def test_a_scale_that_cannot_be_is_refused(path, scale, offset):
    with rasterio.open(write(path, HEIGHTS), "r+") as out:
        out.scales, out.offsets = [scale], [offset]
    with pytest.raises(ValueError, match=r"a\.tif: its heights have scale .* must be finite.*gdal_edit\.py"):
        read_dsm(path)


def test_a_scale_beyond_all_numbers_leaves_no_height(path):
    with rasterio.open(write(path, HEIGHTS), "r+") as out:
        out.scales = [1e308]
    assert np.isnan(read_dsm(path)[0]).all()


def test_complex_numbers_are_no_heights(path):
    write(path, HEIGHTS.astype(np.complex64))
    with pytest.raises(ValueError, match=r"a\.tif: its pixels are complex64 numbers"):
        read_dsm(path)


def test_a_unit_that_is_no_text_is_refused(path):
    with rasterio.open(write(path, HEIGHTS), "r+") as out:
        out.units = ["fathom"]
    path.write_bytes(path.read_bytes().replace(b"fathom", b"f\xff\xfehom"))
    with pytest.raises(ValueError, match=r"a\.tif: not a raster or cut off; renew it .*utf-8"):
        read_dsm(path)


def geo_keys(raw):
    """The numbers that tell the CRS, in the bytes of a little-endian file, to be changed there."""
    (place,) = (place for place in entries(raw)[0] if struct.unpack_from("<H", raw, place) == (34735,))
    count, start = struct.unpack_from("<LL", raw, place + 4)
    return np.frombuffer(raw, "<u2", count, start)


@pytest.mark.parametrize("change", [(6, 3), (10, 9), (15, 999), (26, 9)])
def test_a_crs_that_gdal_gives_up_is_refused(files, path, change):
    """GDAL tells it in its log alone, and degrees would be metres of an unnamed frame."""
    raw = bytearray(files["one strip"])
    geo_keys(raw)[change[0]] = change[1]
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.tif: it names a CRS that cannot be read; .* -a_srs"):
        read_dsm(path)


@pytest.mark.parametrize(
    ("system", "said"),
    [
        (SYSTEMS[-1], r"CRS is in unknown \(1000 m"),
        (SYSTEMS[-2], r"CRS is in foot \(0\.3048 m"),
        ("+proj=utm +zone=17 +units=km", r"CRS is in kilometre .* gdalwarp -t_srs EPSG:\.\.\. a\.tif"),
        ("EPSG:4978", "its CRS is geocentric"),
    ],
)
def test_a_crs_of_no_metres_on_the_ground_is_refused(path, system, said):
    write(path, HEIGHTS, crs=system)
    with pytest.raises(ValueError, match=rf"a\.tif: .*{said}"):
        read_dsm(path)


def test_a_local_crs_goes_with_itself_and_with_no_other(path, other, tmp_path):
    write(path, HEIGHTS + 300, crs=SYSTEMS[-3])
    same = write(tmp_path / "same.tif", HEIGHTS, crs=SYSTEMS[-3])
    np.testing.assert_array_equal(read_site(path, same).chm, HEIGHTS)
    refused((path, other), path, other, "cannot be brought to the DSM's CRS", "gdalwarp")
    refused((other, path), path, other, "cannot be brought to the DSM's CRS", "gdalwarp")


def test_more_pixels_than_a_training_takes_are_refused_before_they_are_read(path):
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 2**16, "width": 2**15, "nodata": 0}
    options = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", **profile, **options, crs="EPSG:32617", transform=DOWN):
        pass
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"a\.tif: 65536 x 32768 pixels are too many .*2\^31.*gdal_translate"
    ):
        read_dsm(path)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()
    with open_heights(path) as file:  # a map is made strip by strip
        assert np.isnan(file.read(2**15, 2**15 + 2)).all()


def test_tiles_far_larger_than_the_image_are_refused_before_they_are_read(files, path):
    raw = bytearray(files["tiles"])
    for tag, size in {322: 2**16 - 16, 323: 2**15}.items():
        (place,) = (place for place in entries(raw)[0] if struct.unpack_from("<H", raw, place) == (tag,))
        struct.pack_into("<H", raw, place + 8, size)
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"a\.tif: its blocks have 32768 x 65520 pixels, and the image 24 x 40"
    ):
        read_dsm(path)


def test_a_file_of_thousands_of_bands_is_refused_in_a_few_lines(files, path):
    raw = bytearray(files["strips"])
    (place,) = (place for place in entries(raw)[0] if struct.unpack_from("<H", raw, place) == (277,))
    struct.pack_into("<H", raw, place + 8, 2**15 - 1)
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"a\.tif: it has bands 1 gray, 2 undefined, .*, \.\.\., and one"
    ) as caught:
        read_dsm(path)
    assert len(str(caught.value)) < 1000


def test_pixels_that_do_not_fit_into_memory_are_refused(path, monkeypatch):
    def fill(self, first, last):
        raise MemoryError

    monkeypatch.setattr(HeightFile, "_known_heights", fill)
    write(path, HEIGHTS)
    with pytest.raises(ValueError, match=r"a\.tif: 24 x 40 pixels are too many .*fit into memory"):
        read_dsm(path)


def test_a_chm_whose_pixels_are_too_fine_is_refused_before_they_are_gathered(path, other):
    write(path, HEIGHTS, place=Affine(1e-5, 0, LEFT + 0.4999, 0, -1e-5, TOP - 0.4999))
    refused((other, path), path, "too many under 1 x 1 of 1 m", "gdalwarp -r max -tr 1 1")
