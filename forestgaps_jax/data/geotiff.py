"""One GeoTIFF of heights: opened, checked, read whole or row by row, written; rasterio is imported on use."""

import difflib
import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from forestgaps_jax.data.tiff import LeftOut, Tags, blocks_left_out, names_crs, read_tags
from forestgaps_jax.types import Grid

DSM_BOUNDS = (-500.0, 9000.0)  # metres; on land the Dead Sea shore lies at -430, Everest at 8849
CHM_BOUNDS = (-30.0, 130.0)  # metres; the tallest tree has 116, bad ground models make negative canopy
MOST_PIXELS = 2**31 - 1  # read at once, or gathered from finer ones; `Rasters` takes no more either
_LARGE_BLOCK = 2**24  # pixels; GDAL holds a whole one, also one that is larger than the image
_NAMED_BANDS = 20
_UNIT_METRES = {"ft": 0.3048, "foot": 0.3048, "us survey foot": 1200 / 3937, "dm": 0.1, "cm": 0.01}
FilePath = str | PathLike[str]


@dataclass(frozen=True, eq=False)
class HeightFile:
    """An open raster of heights in metres; where it lies stays known after it is closed.

    Attributes:
        path: of the file.
        shape: rows and columns.
        transform: affine.Affine from columns and rows to the CRS.
        crs: rasterio.crs.CRS, or None.
        bounds: lowest and highest height that is believed, metres.
        dataset: of rasterio.
        left_out: blocks that are not in the file, or None.
    """

    path: Path
    shape: tuple[int, int]
    transform: Any
    crs: Any
    bounds: tuple[float, float]
    dataset: Any
    left_out: LeftOut | None = None

    @property
    def pixel(self) -> float:
        """Side of a square as large as a pixel, metres."""
        return math.sqrt(abs(self.transform.determinant))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the raster's CRS."""
        (height, width), place = self.shape, self.transform
        xs = [place.c + place.a * column + place.b * row for column in (0, width) for row in (0, height)]
        ys = [place.f + place.d * column + place.e * row for column in (0, width) for row in (0, height)]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def north_up(self) -> Any:
        """The transform of rows that run south, whichever way the file's rows run."""
        place = self.transform
        return type(place)(place.a, 0.0, place.c, 0.0, -abs(place.e), self.box[3])

    def grid(self) -> Grid:
        """Where the raster lies.

        Raises:
            ValueError: its pixels are rotated, mirrored or not square.
        """
        place = self.transform
        # One side stands for both in a Grid: the far edge must not drift by more than half a pixel.
        slack = min(0.01, 0.5 / max(self.shape))
        if place.b or place.d or place.a <= 0 or not place.e or abs(place.a / abs(place.e) - 1) > slack:
            problem = f"its pixels are rotated, mirrored or not square ({place.a:g} x {abs(place.e):g} m)"
            todo = f"gdalwarp -tr {self.pixel:g} {self.pixel:g} {self.path.name} square_{self.path.name}"
            raise ValueError(f"{self.path}: {problem}; resample it: {todo}")
        with refusing_broken(self.path):
            wkt = _plain_wkt(self.crs)
        return Grid((place.a + abs(place.e)) / 2, place.c, self.box[3], wkt)

    def read(self, first: int = 0, last: int | None = None) -> Float32[np.ndarray, "rows width"]:
        """Heights of the file's rows from ``first`` to ``last`` (exclusive), metres; NaN where not known.

        Raises:
            ValueError: the file is broken or cut off, or these are too many pixels.
        """
        last, width = self.shape[0] if last is None else last, self.shape[1]
        if (last - first) * width > MOST_PIXELS:
            raise _too_large(self.path, last - first, width)
        try:
            with refusing_broken(self.path):
                return self._known_heights(first, last)
        except MemoryError as error:
            raise _too_large(self.path, last - first, width) from error

    def read_southward(self, first: int = 0, last: int | None = None) -> Float32[np.ndarray, "rows width"]:
        """As `read`, with rows counted from the north, where the file's own may run north."""
        if self.transform.e < 0:
            return self.read(first, last)
        height = self.shape[0]
        return self.read(height - (height if last is None else last), height - first)[::-1]

    def _known_heights(self, first: int, last: int) -> Float32[np.ndarray, "rows width"]:
        dataset, width = self.dataset, self.shape[1]
        window = import_rasterio().windows.Window(0, first, width, last - first)
        raw = dataset.read(1, window=window)
        unknown = dataset.read_masks(1, window=window) == 0
        if dataset.count > 1:
            # Alpha, which GDAL's mask heeds in integer rasters alone.
            unknown |= dataset.read(2, window=window) == 0
        if dataset.nodata is not None:
            unknown |= raw == np.float64(dataset.nodata)  # a mask band hides it from GDAL's own mask
        if self.left_out:
            unknown |= self.left_out.pixels(first, last, width)
        metres = _UNIT_METRES.get((dataset.units[0] or "m").lower(), 1.0)
        with np.errstate(over="ignore", invalid="ignore"):  # rasters may hold 1e300 for no-data
            if (dataset.scales[0], dataset.offsets[0], metres) != (1.0, 0.0, 1.0):
                raw = (raw * np.float64(dataset.scales[0]) + dataset.offsets[0]) * metres
            heights = raw.astype(np.float32)
        unknown |= ~((heights >= self.bounds[0]) & (heights <= self.bounds[1]))
        heights[unknown] = np.nan
        return heights


@contextmanager
def open_heights(path: FilePath, bounds: tuple[float, float] = DSM_BOUNDS) -> Iterator[HeightFile]:
    """Open a one-band raster of heights in a CRS in metres, and check what can be checked without its pixels.

    Args:
        path: of the file.
        bounds: heights outside are not known: undeclared no-data.

    Raises:
        FileNotFoundError: there is no such file; the message names files alike.
        ValueError: it is no whole raster, has several bands or none of real numbers, a scale or offset that
            cannot be, no place on the ground, or no CRS in metres.
        ImportError: rasterio is not installed.
    """
    rasterio, path = import_rasterio(), Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, (p.name for p in path.parent.glob("*")))
        hint = ", ".join(near) or "none, check the folder"
        raise FileNotFoundError(f"{path}: no such file; near names there: {hint}")
    with ExitStack() as stack:
        with refusing_broken(path), warnings.catch_warnings():
            # A file without a place on the ground is refused by its name below.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            dataset = stack.enter_context(rasterio.open(path))
            place, left_out = dataset.transform, None
            if dataset.driver == "GTiff":
                tags = read_tags(path)
                _check_crs(dataset, tags, path)
                left_out = blocks_left_out(tags, dataset.shape)
            file = HeightFile(path, dataset.shape, place, dataset.crs, bounds, dataset, left_out)
            _check_bands(dataset, path)
            _check_place(file)
            _check_metres(file)
        yield file


def write_geotiff(
    path: FilePath, array: Float[np.ndarray, "height width"], grid: Grid, nodata: float = -9999.0
) -> None:
    """Write one float32 band, deflated and tiled, rows from the top; not finite becomes ``nodata``.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: a known pixel has the value ``nodata``, and would be lost.
    """
    rasterio = import_rasterio()
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {Path(path).parent}; make it first")
    band = array.astype(np.float32)
    if np.any(band == np.float32(nodata)):
        raise ValueError(f"{path}: known pixels have the no-data value {nodata}; choose another nodata")
    band[~np.isfinite(band)] = nodata
    shape = {"height": band.shape[0], "width": band.shape[1], "count": 1, "dtype": band.dtype}
    profile = {**shape, "crs": grid.crs, "transform": place_of(grid), "nodata": nodata}
    layout = {"tiled": True, "compress": "deflate", "predictor": 3, "BIGTIFF": "IF_SAFER"}
    with warnings.catch_warnings():
        # A virtual forest at 0, 0 with pixels of 1 m looks to rasterio as if it had no place.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **profile, **layout) as dataset:
            dataset.write(band, 1)


def import_rasterio() -> Any:
    """The library rasterio.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import rasterio.warp
        import rasterio.windows
    except ImportError as error:
        raise ImportError("GeoTIFFs are read and written with rasterio: pip install rasterio") from error
    return rasterio


def site_name(dsm_path: FilePath) -> str:
    """The name of a site: its DSM's file name without ``_DSM.tif``."""
    return Path(dsm_path).stem.removesuffix("_DSM")


def place_of(grid: Grid) -> Any:
    """The affine transform of a grid."""
    return import_rasterio().Affine(grid.resolution, 0, grid.left, 0, -grid.resolution, grid.top)


@contextmanager
def refusing_broken(name: FilePath, says: str = "not a raster or cut off; renew it") -> Iterator[None]:
    """Errors of GDAL, and of reading what a broken file says of itself, become one that names the file.

    Raises:
        ValueError: what ``says`` of ``name``, and why.
    """
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import CRSError, RasterioError

    try:
        yield
    except (RasterioError, CRSError, CPLE_BaseError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{name}: {says} ({error.__cause__ or error})") from error


def _too_large(path: Path, rows: int, width: int) -> ValueError:
    cut = f"gdal_translate -srcwin column row width height {path.name} part_{path.name}"
    return ValueError(
        f"{path}: {rows} x {width} pixels are too many to read at once: must be below 2^31, and fit into "
        f"memory; cut out a part: {cut}"
    )


def _plain_wkt(crs: Any) -> str | None:
    """One text for one CRS: files spell the same EPSG code in several ways."""
    if crs is None:
        return None
    code = crs.to_epsg()
    return (type(crs).from_epsg(code) if code else crs).to_wkt()


def _check_bands(dataset: Any, path: Path) -> None:
    kinds = [kind.name for kind in dataset.colorinterp]
    if len(kinds) - kinds.count("alpha") != 1 or kinds[0] == "alpha":
        named = zip(dataset.indexes, dataset.descriptions, kinds, strict=True)
        listed = [f"{index} {text or kind}" for index, text, kind in islice(named, _NAMED_BANDS)]
        bands = ", ".join([*listed, "..."] if len(kinds) > _NAMED_BANDS else listed) or "none"
        todo = f"gdal_translate -b 1 {path.name} heights.tif"
        raise ValueError(f"{path}: it has bands {bands}, and one of heights is needed; pick it: {todo}")
    rows, columns = dataset.block_shapes[0]
    if rows * columns > max(_LARGE_BLOCK, dataset.height * dataset.width):
        raise ValueError(
            f"{path}: its blocks have {rows} x {columns} pixels, and the image {dataset.height} x "
            f"{dataset.width}: its header is broken; renew it"
        )
    kind, scale, offset = dataset.dtypes[0], dataset.scales[0], dataset.offsets[0]
    if kind.startswith("complex"):
        raise ValueError(f"{path}: its pixels are {kind} numbers, and heights are real; make it anew")
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        todo = f"gdal_edit.py -scale 1 -offset 0 {path.name}"
        raise ValueError(
            f"{path}: its heights have scale {scale:g} and offset {offset:g}: must be finite, and the scale "
            f"not 0; set them right: {todo}"
        )


def _check_crs(dataset: Any, tags: Tags, path: Path) -> None:
    if dataset.crs is None and names_crs(tags):
        todo = f"gdal_edit.py -a_srs EPSG:... {path.name}"
        raise ValueError(f"{path}: it names a CRS that cannot be read; give it anew: {todo}")


def _check_place(raster: HeightFile) -> None:
    path, place = raster.path, raster.transform
    left, bottom, right, top = raster.box
    sides = right - left, top - bottom, raster.pixel
    if place.is_identity or not all(0 < side < math.inf for side in sides):
        named = f"pixels of {place.a:g} x {abs(place.e):g} m from {place.c:g}, {place.f:g}"
        todo = f"gdal_edit.py -a_srs EPSG:... -a_ullr west north east south {path.name}"
        raise ValueError(f"{path}: it has no place on the ground ({named}); give it one: {todo}")


def _check_metres(raster: HeightFile) -> None:
    path, crs = raster.path, raster.crs
    if crs is None:
        return
    unit, metres = ("degree", 1.0) if crs.is_geographic else crs.units_factor
    if crs.is_geographic:
        problem = "its pixels are in degrees"
    elif crs.to_wkt().startswith("GEOCCS"):
        problem = "its CRS is geocentric"
    elif abs(metres - 1) > 1e-9:
        problem = f"its CRS is in {unit} ({metres:.6g} m; check the unit of its heights too)"
    elif crs.to_epsg() == 3857:
        problem = "web Mercator stretches its metres"
    else:
        return
    todo = f"gdalwarp -t_srs EPSG:{_utm_epsg(raster) or '...'} {path.name} utm_{path.name}"
    raise ValueError(f"{path}: {problem}, and the ground is measured in metres; reproject it: {todo}")


def _utm_epsg(raster: HeightFile) -> int | None:
    """Of the raster's centre; None where that is nowhere on Earth."""
    left, bottom, right, top = raster.box
    centre = [(left + right) / 2], [(bottom + top) / 2]
    try:
        with refusing_broken(raster.path):
            (lon,), (lat,) = import_rasterio().warp.transform(raster.crs, "EPSG:4326", *centre)
    except ValueError:
        return None
    if not (math.isfinite(lon) and math.isfinite(lat)):
        return None
    return (32600 if lat >= 0 else 32700) + int((lon + 180) % 360 // 6) + 1
