"""One GeoTIFF of heights: opened, checked, read whole or row by row, written; rasterio is imported on use."""

import difflib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from forestgaps_jax.types import Grid

DSM_BOUNDS = (-500.0, 9000.0)  # metres; on land the Dead Sea shore lies at -430, Everest at 8849
CHM_BOUNDS = (-30.0, 130.0)  # metres; the tallest tree has 116, bad ground models make negative canopy
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
    """

    path: Path
    shape: tuple[int, int]
    transform: Any
    crs: Any
    bounds: tuple[float, float]
    dataset: Any

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
        if place.b or place.d or place.a < 0 or abs(place.a / abs(place.e) - 1) > slack:
            problem = f"its pixels are rotated, mirrored or not square ({place.a:g} x {abs(place.e):g} m)"
            todo = f"gdalwarp -tr {self.pixel:g} {self.pixel:g} {self.path.name} square_{self.path.name}"
            raise ValueError(f"{self.path}: {problem}; resample it: {todo}")
        return Grid((place.a + abs(place.e)) / 2, place.c, self.box[3], _plain_wkt(self.crs))

    def read(self, first: int = 0, last: int | None = None) -> Float32[np.ndarray, "rows width"]:
        """Heights of the file's rows from ``first`` to ``last`` (exclusive), metres; NaN where not known.

        Raises:
            ValueError: the file is cut off.
        """
        rasterio = import_rasterio()
        last = self.shape[0] if last is None else last
        window = rasterio.windows.Window(0, first, self.shape[1], last - first)
        try:
            return _known_heights(self.dataset, self.bounds, window)
        except rasterio.errors.RasterioIOError as error:
            raise _broken(self.path, error) from error

    def read_southward(self, first: int = 0, last: int | None = None) -> Float32[np.ndarray, "rows width"]:
        """As `read`, with rows counted from the north, where the file's own may run north."""
        if self.transform.e < 0:
            return self.read(first, last)
        height = self.shape[0]
        return self.read(height - (height if last is None else last), height - first)[::-1]


@contextmanager
def open_heights(path: FilePath, bounds: tuple[float, float] = DSM_BOUNDS) -> Iterator[HeightFile]:
    """Open a one-band raster of heights in a CRS in metres, and check what can be checked without its pixels.

    Args:
        path: of the file.
        bounds: heights outside are not known: undeclared no-data.

    Raises:
        FileNotFoundError: there is no such file; the message names files alike.
        ValueError: it is no raster, has several bands, no place on the ground, or no CRS in metres.
        ImportError: rasterio is not installed.
    """
    rasterio, path = import_rasterio(), Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, (p.name for p in path.parent.glob("*")))
        hint = ", ".join(near) or "none, check the folder"
        raise FileNotFoundError(f"{path}: no such file; near names there: {hint}")
    try:
        with warnings.catch_warnings():
            # A file without a place on the ground is refused by its name below.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            dataset = rasterio.open(path)
            place = dataset.transform
    except rasterio.errors.RasterioIOError as error:
        raise _broken(path, error) from error
    with dataset:
        _check_bands(dataset, path)
        file = HeightFile(path, dataset.shape, place, dataset.crs, bounds, dataset)
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


def place_of(grid: Grid) -> Any:
    """The affine transform of a grid."""
    return import_rasterio().Affine(grid.resolution, 0, grid.left, 0, -grid.resolution, grid.top)


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a raster or cut off; renew it ({error.__cause__ or error})")


def _plain_wkt(crs: Any) -> str | None:
    """One text for one CRS: files spell the same EPSG code in several ways."""
    if crs is None:
        return None
    code = crs.to_epsg()
    return (type(crs).from_epsg(code) if code else crs).to_wkt()


def _known_heights(dataset: Any, bounds: tuple[float, float], window: Any) -> np.ndarray:
    raw = dataset.read(1, window=window)
    unknown = dataset.read_masks(1, window=window) == 0
    if dataset.count > 1:
        unknown |= dataset.read(2, window=window) == 0  # alpha; GDAL's mask heeds it in integer rasters alone
    if dataset.nodata is not None:
        unknown |= raw == np.float64(dataset.nodata)  # a mask band hides it from GDAL's own mask
    metres = _UNIT_METRES.get((dataset.units[0] or "m").lower(), 1.0)
    if (dataset.scales[0], dataset.offsets[0], metres) != (1.0, 0.0, 1.0):
        raw = (raw * np.float64(dataset.scales[0]) + dataset.offsets[0]) * metres
    with np.errstate(over="ignore"):  # float64 rasters may hold 1e300 for no-data
        heights = raw.astype(np.float32)
    unknown |= ~((heights >= bounds[0]) & (heights <= bounds[1]))
    heights[unknown] = np.nan
    return heights


def _check_bands(dataset: Any, path: Path) -> None:
    kinds = [kind.name for kind in dataset.colorinterp]
    if len(kinds) - kinds.count("alpha") != 1 or kinds[0] == "alpha":
        named = zip(dataset.indexes, dataset.descriptions, kinds, strict=True)
        bands = ", ".join(f"{index} {text or kind}" for index, text, kind in named)
        todo = f"gdal_translate -b 1 {path.name} heights.tif"
        raise ValueError(f"{path}: it has bands {bands}, and one of heights is needed; pick it: {todo}")


def _check_metres(raster: HeightFile) -> None:
    path, crs = raster.path, raster.crs
    if raster.transform.is_identity:
        todo = f"gdal_edit.py -a_srs EPSG:... -a_ullr west north east south {path.name}"
        raise ValueError(f"{path}: it has no place on the ground; give it one: {todo}")
    if crs is None:
        return
    unit, metres = crs.linear_units_factor if crs.is_projected else ("metre", 1.0)
    if crs.is_geographic:
        problem = "its pixels are in degrees"
    elif abs(metres - 1) > 1e-9:
        problem = f"its CRS is in {unit} ({metres:.6g} m; check the unit of its heights too)"
    elif crs.to_epsg() == 3857:
        problem = "web Mercator stretches its metres"
    else:
        return
    todo = f"gdalwarp -t_srs EPSG:{_utm_epsg(raster)} {path.name} utm_{path.name}"
    raise ValueError(f"{path}: {problem}, and the ground is measured in metres; reproject it: {todo}")


def _utm_epsg(raster: HeightFile) -> int:
    left, bottom, right, top = raster.box
    centre = [(left + right) / 2], [(bottom + top) / 2]
    (lon,), (lat,) = import_rasterio().warp.transform(raster.crs, "EPSG:4326", *centre)
    return (32600 if lat >= 0 else 32700) + int((lon + 180) % 360 // 6) + 1
