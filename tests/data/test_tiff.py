import struct

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from forestgaps_jax.data.tiff import blocks_left_out, names_crs, read_tags

SHAPE = 40, 50


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.tif"


def write(path, window=None, **options):
    """A raster of ones, or of a window of them and nothing else."""
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": SHAPE[0], "width": SHAPE[1]}
    with rasterio.open(path, "w", **profile, transform=rasterio.Affine(2, 0, 5, 0, -2, 5), **options) as out:
        window = window or Window(0, 0, *SHAPE[::-1])
        out.write(np.ones((window.height, window.width), np.uint8), 1, window=window)
    return path


TILES = {"tiled": True, "blockxsize": 16, "blockysize": 32}
LAYOUTS = [
    {},
    {"blockysize": 7},
    TILES,
    {"blockysize": 7, "compress": "deflate"},
    {"blockysize": 7, "BIGTIFF": "YES"},
    {"blockysize": 7, "ENDIANNESS": "BIG"},
    {**TILES, "BIGTIFF": "YES", "ENDIANNESS": "BIG"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_whole_image_leaves_nothing_out(path, layout):
    assert blocks_left_out(read_tags(write(path, **layout)), SHAPE) is None


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_what_was_never_written_is_left_out(path, layout):
    with rasterio.open(write(path, **layout)) as file:
        rows, columns = file.block_shapes[0]
    write(path, Window(0, 0, min(columns, SHAPE[1]), min(rows, SHAPE[0])), SPARSE_OK=True, **layout)
    left_out = blocks_left_out(read_tags(path), SHAPE)
    expected = np.ones(SHAPE, bool)
    expected[:rows, :columns] = False
    for first, last in [(0, SHAPE[0]), (0, 1), (rows - 1, rows + 1), (SHAPE[0] - 1, SHAPE[0])]:
        np.testing.assert_array_equal(left_out.pixels(first, last, SHAPE[1]), expected[first:last])


def test_blocks_of_a_taller_image_than_the_file_has_are_left_out(path):
    left_out = blocks_left_out(read_tags(write(path, blockysize=8)), (2**31, SHAPE[1]))
    assert not left_out.pixels(0, 40, SHAPE[1]).any()
    assert left_out.pixels(40, 50, SHAPE[1]).all()
    assert left_out.pixels(2**31 - 3, 2**31, SHAPE[1]).all()


def test_no_byte_of_a_directory_may_be_missing(path):
    raw = write(path, blockysize=7).read_bytes()
    head = min(read_tags(path)[273])
    for size in range(2, head):
        path.write_bytes(raw[:size])
        with pytest.raises(EOFError, match=f"it has {size} bytes"):
            read_tags(path)


def test_directories_in_a_circle_are_read_once(path):
    raw = bytearray(write(path).read_bytes())
    (start,), (count,) = struct.unpack_from("<L", raw, 4), struct.unpack_from("<H", raw, 8)
    struct.pack_into("<L", raw, start + 2 + 12 * count, start)
    path.write_bytes(raw)
    assert read_tags(path)[278] == SHAPE[0]


@pytest.mark.parametrize(
    ("crs", "named"),
    [(None, False), ("EPSG:32617", True), ("EPSG:4326", True), ('LOCAL_CS["plot",UNIT["metre",1]]', False)],
)
def test_a_crs_is_named_by_its_keys(path, crs, named):
    assert names_crs(read_tags(write(path, crs=crs))) == named
