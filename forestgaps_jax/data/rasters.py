"""GeoTIFF pairs to a `Site`, and arrays to GeoTIFF; rasterio is imported only where it is used."""

import difflib
import math
import warnings
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from forestgaps_jax.types import Grid, Site

DSM_BOUNDS = (-500.0, 9000.0)  # metres; on land the Dead Sea shore lies at -430, Everest at 8849
CHM_BOUNDS = (-30.0, 130.0)  # metres; the tallest tree has 116, bad ground models make negative canopy
_UNIT_METRES = {"ft": 0.3048, "foot": 0.3048, "us survey foot": 1200 / 3937, "dm": 0.1, "cm": 0.01}
FilePath = str | PathLike[str]


@dataclass(frozen=True, eq=False)
class _Raster:
    path: Path
    heights: Float32[np.ndarray, "height width"]
    transform: Any  # affine.Affine
    crs: Any  # rasterio.crs.CRS | None

    @property
    def pixel(self) -> float:
        return math.sqrt(abs(self.transform.determinant))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the raster's CRS."""
        (height, width), place = self.heights.shape, self.transform
        xs = [place.c + place.a * column + place.b * row for column in (0, width) for row in (0, height)]
        ys = [place.f + place.d * column + place.e * row for column in (0, width) for row in (0, height)]
        return min(xs), min(ys), max(xs), max(ys)


def read_site(dsm_path: FilePath, chm_path: FilePath, *, name: str | None = None) -> Site:
    """Read a DSM and a CHM onto one grid: the DSM's, cropped to where the CHM lies.

    The DSM is never resampled. Each DSM pixel takes the highest known of the CHM pixels that lie under k x k
    evenly spaced points of it, k = DSM pixel / CHM pixel, rounded, at least 1:

    - Same grid, or shifted by whole pixels: an exact copy.
    - Finer CHM: the highest CHM pixel in it, just as the DSM holds the highest return. So ``CHM < t`` means
      that no canopy in the pixel reaches t; average or bilinear heights make gaps of crown edges.
    - Coarser CHM, shifted by part of a pixel, or in another CRS: the nearest CHM pixel. Each height is a
      measured one and gap fractions are kept; bilinear heights fill small gaps and smear beside no-data.

    NaN is what is not known: declared no-data, mask, alpha, NaN, infinite, or outside `DSM_BOUNDS` or
    `CHM_BOUNDS` (undeclared -9999, 3.4e38). Scale, offset and a declared height unit (ft, dm) are applied;
    nothing is guessed. Negative CHM noise stays: it is below every threshold, clipped or not.

    Args:
        dsm_path: one-band GeoTIFF of surface heights, projected in metres.
        chm_path: one-band GeoTIFF of canopy heights; CRS (in metres), pixel size and extent may differ.
        name: of the site; by default the DSM's file name without ``_DSM.tif``.

    Raises:
        FileNotFoundError: a file is missing; the message names files alike.
        ValueError: a file is no whole one-band raster in metres, the DSM's pixels are rotated or not square,
            one alone has a CRS, or both do not overlap, share no known pixel, are the same or look swapped.
        ImportError: rasterio is not installed.
    """
    dsm, grid = read_dsm(dsm_path)
    chm = _read_raster(Path(chm_path), CHM_BOUNDS)
    pair = f"{dsm_path} (DSM) and {chm_path} (CHM)"
    rows, columns = _overlap(grid, dsm.shape, chm, pair)
    left, top = grid.left + columns.start * grid.resolution, grid.top - rows.start * grid.resolution
    dsm, grid = dsm[rows, columns], replace(grid, left=left, top=top)
    canopy = _onto_grid(chm, grid, dsm.shape)
    _check_heights(dsm, canopy, pair)
    name = name or Path(dsm_path).stem.removesuffix("_DSM")
    return Site(name, dsm, canopy, grid)


def read_dsm(path: FilePath) -> tuple[Float32[np.ndarray, "height width"], Grid]:
    """Read surface heights alone, as `read_site` does: metres, NaN where not known; same errors."""
    dsm = _read_raster(Path(path), DSM_BOUNDS)
    place = dsm.transform
    # One side stands for both in a Grid: the far edge must not drift by more than half a pixel.
    slack = min(0.01, 0.5 / max(dsm.heights.shape))
    if place.b or place.d or place.a < 0 or abs(place.a / abs(place.e) - 1) > slack:
        problem = f"its pixels are rotated, mirrored or not square ({place.a:g} x {abs(place.e):g} m)"
        todo = f"gdalwarp -tr {dsm.pixel:g} {dsm.pixel:g} {dsm.path.name} square_{dsm.path.name}"
        raise ValueError(f"{path}: {problem}; resample it: {todo}")
    grid = Grid((place.a + abs(place.e)) / 2, place.c, dsm.bounds[3], _plain_wkt(dsm.crs))
    return dsm.heights[:: -1 if place.e > 0 else 1], grid


def _plain_wkt(crs: Any) -> str | None:
    """One text for one CRS: files spell the same EPSG code in several ways."""
    if crs is None:
        return None
    code = crs.to_epsg()
    return (type(crs).from_epsg(code) if code else crs).to_wkt()


def write_geotiff(
    path: FilePath, array: Float[np.ndarray, "height width"], grid: Grid, nodata: float = -9999.0
) -> None:
    """Write one float32 band, deflated and tiled, rows from the top; not finite becomes ``nodata``.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: a known pixel has the value ``nodata``, and would be lost.
    """
    rasterio = _import_rasterio()
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {Path(path).parent}; make it first")
    band = array.astype(np.float32)
    if np.any(band == np.float32(nodata)):
        raise ValueError(f"{path}: known pixels have the no-data value {nodata}; choose another nodata")
    band[~np.isfinite(band)] = nodata
    shape = {"height": band.shape[0], "width": band.shape[1], "count": 1, "dtype": band.dtype}
    profile = {**shape, "crs": grid.crs, "transform": _place(grid), "nodata": nodata}
    layout = {"tiled": True, "compress": "deflate", "predictor": 3, "BIGTIFF": "IF_SAFER"}
    with warnings.catch_warnings():
        # A virtual forest at 0, 0 with pixels of 1 m looks to rasterio as if it had no place.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **profile, **layout) as dataset:
            dataset.write(band, 1)


def _import_rasterio() -> Any:
    try:
        import rasterio.warp
    except ImportError as error:
        raise ImportError("GeoTIFFs are read and written with rasterio: pip install rasterio") from error
    return rasterio


def _read_raster(path: Path, bounds: tuple[float, float]) -> _Raster:
    rasterio = _import_rasterio()
    if not path.exists():
        near = difflib.get_close_matches(path.name, (p.name for p in path.parent.glob("*")))
        hint = ", ".join(near) or "none, check the folder"
        raise FileNotFoundError(f"{path}: no such file; near names there: {hint}")
    try:
        with warnings.catch_warnings():
            # A file without a place on the ground is refused by its name below.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                _check_bands(dataset, path)
                raster = _Raster(path, _known_heights(dataset, bounds), dataset.transform, dataset.crs)
    except rasterio.errors.RasterioIOError as error:
        raise ValueError(f"{path}: not a raster or cut off; renew it ({error.__cause__ or error})") from error
    _check_metres(raster)
    return raster


def _known_heights(dataset: Any, bounds: tuple[float, float]) -> Float32[np.ndarray, "height width"]:
    raw = dataset.read(1)
    unknown = dataset.read_masks(1) == 0
    if dataset.count > 1:
        unknown |= dataset.read(2) == 0  # alpha; GDAL's own mask heeds it in integer rasters alone
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


def _check_metres(raster: _Raster) -> None:
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


def _utm_epsg(raster: _Raster) -> int:
    left, bottom, right, top = raster.bounds
    centre = [(left + right) / 2], [(bottom + top) / 2]
    (lon,), (lat,) = _import_rasterio().warp.transform(raster.crs, "EPSG:4326", *centre)
    return (32600 if lat >= 0 else 32700) + int((lon + 180) % 360 // 6) + 1


def _place(grid: Grid) -> Any:
    return _import_rasterio().Affine(grid.resolution, 0, grid.left, 0, -grid.resolution, grid.top)


def _overlap(grid: Grid, shape: tuple[int, ...], chm: _Raster, pair: str) -> tuple[slice, slice]:
    """Rows and columns of the grid whose pixel centres lie in the CHM's box."""
    box, side = chm.bounds, grid.resolution
    if (grid.crs is None) != (chm.crs is None):
        bare = "DSM" if grid.crs is None else "CHM"
        raise ValueError(f"{pair}: the {bare} names no CRS; give it one: gdal_edit.py -a_srs EPSG:...")
    if chm.crs is not None and chm.crs != grid.crs:
        box = _import_rasterio().warp.transform_bounds(chm.crs, grid.crs, *box)
    columns = _centres_between((box[0] - grid.left) / side, (box[2] - grid.left) / side, shape[1])
    rows = _centres_between((grid.top - box[3]) / side, (grid.top - box[1]) / side, shape[0])
    if rows.start >= rows.stop or columns.start >= columns.stop:
        own = grid.left, grid.top - shape[0] * side, grid.left + shape[1] * side, grid.top
        extents = " and ".join(str(tuple(round(edge, 1) for edge in b)) for b in (own, box))
        raise ValueError(f"{pair} do not overlap: {extents} in the DSM's CRS; check each CRS by gdalinfo")
    return rows, columns


def _centres_between(low: float, high: float, size: int) -> slice:
    return slice(*(int(edge) for edge in np.clip([np.ceil(low - 0.5), np.floor(high + 0.5)], 0, size)))


def _onto_grid(chm: _Raster, grid: Grid, shape: tuple[int, ...]) -> Float32[np.ndarray, "height width"]:
    """Highest known CHM pixel under k x k points of each pixel of the grid."""
    warp = _import_rasterio().warp
    k = max(1, math.floor(grid.resolution / chm.pixel + 0.5))
    points = np.full((shape[0] * k, shape[1] * k), np.nan, np.float32)
    # Without a CRS both lie in one unnamed frame: any CRS, the same twice, keeps it as it is.
    source = {"src_transform": chm.transform, "src_crs": chm.crs or "EPSG:32631", "src_nodata": np.nan}
    place = _place(replace(grid, resolution=grid.resolution / k))
    target = {"dst_transform": place, "dst_crs": grid.crs or "EPSG:32631", "dst_nodata": np.nan}
    warp.reproject(chm.heights, points, **source, **target, resampling=warp.Resampling.nearest)
    return np.fmax.reduce(points.reshape(shape[0], k, shape[1], k), axis=(1, 3))


def _check_heights(
    dsm: Float32[np.ndarray, "height width"], chm: Float32[np.ndarray, "height width"], pair: str
) -> None:
    known = np.isfinite(dsm) & np.isfinite(chm)
    if not known.any():
        counts = f"{np.isfinite(dsm).sum()} and {np.isfinite(chm).sum()} known"
        raise ValueError(f"{pair}: no valid pixel ({counts}): swapped, not in metres, or empty there?")
    if np.array_equal(dsm, chm, equal_nan=True):
        raise ValueError(f"{pair}: the same raster was given twice; CHM = DSM - terrain is needed")
    # Canopy above the surface means ground below sea level: real, but then some of the canopy is low.
    if np.median(dsm[known] - chm[known]) < 0 and np.percentile(chm[known], 1) > 30:
        raise ValueError(f"{pair}: the CHM lies above the DSM and never near 0; swapped? Give the DSM first")
