"""Maps as files: what GDAL reads back, and that it is a Cloud-Optimised GeoTIFF."""

import struct

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine

from forestgaps_jax.inference.geotiff import DEVIATION, MASK, PROBABILITY, MapPlace, write_map

PLACE = Affine(0.5, 0, 885_022.0, 0, -0.5, 630_220.0)


def values(shape, seed=0):
    rng = np.random.default_rng(seed)
    probability = rng.uniform(0, 1, shape).astype(np.float32)
    probability[:, rng.uniform(size=shape[1:]) < 0.2] = np.nan
    return probability


def write(path, kind, probability, thresholds, *, crs="EPSG:3005", rows=37):
    place = MapPlace(probability.shape[1:], PLACE, rasterio.CRS.from_string(crs) if crs else None)
    with write_map(path, kind, place, thresholds, {"run": "quickstart"}) as write_rows:
        for first in range(0, probability.shape[1], rows):
            write_rows(first, kind.values(probability[:, first : first + rows]))
    return path


def image_file_directories(path):
    """Offset of each directory of a TIFF, read from its bytes."""
    raw = path.read_bytes()
    assert raw[:4] == b"II*\0"
    (offset,), offsets = struct.unpack("<I", raw[4:8]), []
    while offset:
        offsets.append(offset)
        (entries,) = struct.unpack("<H", raw[offset : offset + 2])
        end = offset + 2 + 12 * entries
        (offset,) = struct.unpack("<I", raw[end : end + 4])
    return offsets, raw


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", [PROBABILITY, MASK, DEVIATION], ids=lambda kind: kind.name)
def test_a_map_is_read_back_as_it_was_written(tmp_path, kind, bands):
    probability, thresholds = values((bands, 70, 53)), [2.5, 5.0, 10.0, 15.0, 20.0][:bands]
    path = write(tmp_path / "a.tif", kind, probability, thresholds)
    with rasterio.open(path) as dataset:
        read = dataset.read(masked=True)
        assert dataset.transform == PLACE
        assert dataset.crs.to_epsg() == 3005
        assert dataset.nodata == (255 if kind is MASK else -9999)
        assert set(dataset.dtypes) == {"uint8" if kind is MASK else "float32"}
        gap = [f"gap below {text} m" for text in ("2.5", "5", "10", "15", "20")[:bands]]
        before = {MASK: "", PROBABILITY: "probability of "}.get(
            kind, "standard deviation of the probability of "
        )
        assert list(dataset.descriptions) == [before + text for text in gap]
        assert [float(dataset.tags(band)["threshold"]) for band in dataset.indexes] == thresholds
        assert dataset.tags()["run"] == "quickstart"
        colours = {ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha}
        assert not colours & set(dataset.colorinterp)
    np.testing.assert_array_equal(np.ma.getmaskarray(read), np.isnan(probability))
    expected = probability >= 0.5 if kind is MASK else probability
    known = ~np.isnan(probability)
    np.testing.assert_array_equal(read.data[known], expected[known])
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_a_mask_of_one_threshold_has_colours(tmp_path):
    path = write(tmp_path / "a.tif", MASK, values((1, 20, 20)), [5.0])
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp == (ColorInterp.palette,)
        colours = dataset.colormap(1)
    assert colours[0] != colours[1]
    assert colours[255][3] == 0  # not known is transparent


@pytest.mark.parametrize(("kind", "bands"), [(PROBABILITY, 2), (MASK, 1), (MASK, 3)])
def test_a_large_map_is_cloud_optimised(tmp_path, kind, bands):
    probability = values((bands, 1300, 700))
    path = write(tmp_path / "a.tif", kind, probability, [5.0, 10.0, 15.0][:bands], rows=64)
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert set(dataset.block_shapes) == {(512, 512)}
        assert [dataset.overviews(band) for band in dataset.indexes] == [[2, 4]] * bands
        coarse = dataset.read(1, out_shape=(650, 350), masked=True)
    offsets, raw = image_file_directories(path)
    assert len(offsets) == 3
    # Directories come first, finest before coarsest, and before any pixel; the coarsest pixels come first.
    assert offsets == sorted(offsets)
    starts = [first_tile(raw, offset) for offset in offsets]
    assert starts == sorted(starts, reverse=True)
    assert max(offsets) < min(starts)
    squares = probability[0].reshape(650, 2, 350, 2)
    known = ~np.isnan(squares).all(axis=(1, 3))
    np.testing.assert_array_equal(~np.ma.getmaskarray(coarse), known)
    if kind is PROBABILITY:
        with np.errstate(invalid="ignore"):
            mean = np.nansum(squares, axis=(1, 3)) / (~np.isnan(squares)).sum(axis=(1, 3))
        np.testing.assert_allclose(coarse.data[known], mean[known], atol=1e-5)
    else:
        gaps, others = (squares >= 0.5).sum(axis=(1, 3)), (squares < 0.5).sum(axis=(1, 3))
        assert (coarse.data[gaps > others] == 1).all()
        assert (coarse.data[known & (gaps < others)] == 0).all()


def first_tile(raw, offset):
    """Where the pixels of a directory start: the least of TileOffsets (tag 324)."""
    (entries,) = struct.unpack("<H", raw[offset : offset + 2])
    for entry in range(entries):
        tag, _, count, value = struct.unpack("<HHII", raw[offset + 2 + 12 * entry :][:12])
        if tag == 324:
            return min(struct.unpack(f"<{count}I", raw[value : value + 4 * count])) if count > 1 else value
    raise AssertionError("not tiled")


def test_overviews_never_mix_no_data_in(tmp_path):
    probability = np.full((1, 1100, 600), 0.8, np.float32)
    probability[:, ::2, ::2] = np.nan
    path = write(tmp_path / "a.tif", PROBABILITY, probability, [5.0])
    with rasterio.open(path) as dataset:
        coarse = dataset.read(1, out_shape=(275, 150), resampling=Resampling.nearest)
    np.testing.assert_allclose(coarse, 0.8, atol=1e-5)


def test_a_map_without_crs_lies_where_it_was_put(tmp_path):
    path = write(tmp_path / "a.tif", MASK, values((1, 20, 20)), [5.0], crs=None)
    with rasterio.open(path) as dataset:
        assert (dataset.crs, dataset.transform) == (None, PLACE)


def test_what_breaks_off_leaves_nothing(tmp_path):
    def break_off():
        with write_map(tmp_path / "a.tif", MASK, MapPlace((20, 20), PLACE, None), [5.0], {}) as write_rows:
            write_rows(0, np.zeros((1, 10, 20), np.uint8))
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert list(tmp_path.iterdir()) == []
