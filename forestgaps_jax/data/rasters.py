"""GeoTIFF pairs to a `Site`."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from forestgaps_jax.data.geotiff import (
    CHM_BOUNDS,
    DSM_BOUNDS,
    MOST_PIXELS,
    FilePath,
    HeightFile,
    import_rasterio,
    open_heights,
    place_of,
    refusing_broken,
    site_name,
)
from forestgaps_jax.types import Grid, Site


def read_site(dsm_path: FilePath, chm_path: FilePath, *, name: str | None = None) -> Site:
    """Read a DSM and a CHM onto one grid: the DSM's, cropped to where the CHM lies.

    The DSM is never resampled. Each DSM pixel takes the highest known of the CHM pixels that lie under k x k
    evenly spaced points of it, k = DSM pixel / CHM pixel, rounded, at least 1:

    - Same grid, or shifted by whole pixels: an exact copy.
    - Finer CHM: the highest CHM pixel in it, just as the DSM holds the highest return. So ``CHM < t`` means
      that no canopy in the pixel reaches t; average or bilinear heights make gaps of crown edges.
    - Coarser CHM, shifted by part of a pixel, or in another CRS: the nearest CHM pixel. Each height is a
      measured one and gap fractions are kept; bilinear heights fill small gaps and smear beside no-data.

    NaN is what is not known: declared no-data, mask, alpha, NaN, infinite, blocks that were never written,
    or outside `DSM_BOUNDS` or `CHM_BOUNDS` (undeclared -9999, 3.4e38). Scale, offset and a declared height
    unit (ft, dm) are applied; nothing is guessed. Negative CHM noise stays: it is below every threshold,
    clipped or not.

    Args:
        dsm_path: one-band GeoTIFF of surface heights, projected in metres.
        chm_path: one-band GeoTIFF of canopy heights; CRS (in metres), pixel size and extent may differ.
        name: of the site; by default the DSM's file name without ``_DSM.tif``.

    Raises:
        FileNotFoundError: a file is missing; the message names files alike.
        ValueError: a file is no whole one-band raster in metres, or has 2^31 pixels or more; the DSM's pixels
            are rotated or not square; one alone has a CRS, or theirs do not go together; or both do not
            overlap, share no known pixel, are the same or look swapped.
        ImportError: rasterio is not installed.
    """
    dsm, grid = read_dsm(dsm_path)
    with open_heights(chm_path, CHM_BOUNDS) as chm:
        heights = chm.read()
    pair = f"{dsm_path} (DSM) and {chm_path} (CHM)"
    rows, columns = _overlap(grid, dsm.shape, chm, pair)
    left, top = grid.left + columns.start * grid.resolution, grid.top - rows.start * grid.resolution
    dsm, grid = dsm[rows, columns], replace(grid, left=left, top=top)
    canopy = _onto_grid(chm, heights, grid, dsm.shape)
    _check_heights(dsm, canopy, pair)
    return Site(name or site_name(dsm_path), dsm, canopy, grid)


def read_chm(path: FilePath, *, name: str | None = None) -> Site:
    """Read canopy heights alone, on flat ground: the DSM is the CHM; see `put_on_terrain`.

    Errors are those of `read_site`.
    """
    chm, grid = _read_heights(path, CHM_BOUNDS)
    return Site(name or Path(path).stem.removesuffix("_CHM"), chm, chm, grid)


def read_dsm(path: FilePath) -> tuple[Float32[np.ndarray, "height width"], Grid]:
    """Read surface heights alone, as `read_site` does: metres, NaN where not known; same errors."""
    return _read_heights(path, DSM_BOUNDS)


def _read_heights(
    path: FilePath, bounds: tuple[float, float]
) -> tuple[Float32[np.ndarray, "height width"], Grid]:
    with open_heights(path, bounds) as file:
        return file.read_southward(), file.grid()


def _overlap(grid: Grid, shape: tuple[int, ...], chm: HeightFile, pair: str) -> tuple[slice, slice]:
    """Rows and columns of the grid whose pixel centres lie in the CHM's box."""
    box, side = chm.box, grid.resolution
    if (grid.crs is None) != (chm.crs is None):
        bare = "DSM" if grid.crs is None else "CHM"
        raise ValueError(f"{pair}: the {bare} names no CRS; give it one: gdal_edit.py -a_srs EPSG:...")
    if chm.crs is not None and chm.crs != grid.crs:
        with refusing_broken(pair, "the CHM cannot be brought to the DSM's CRS; reproject it by gdalwarp"):
            box = import_rasterio().warp.transform_bounds(chm.crs, grid.crs, *box)
        box = tuple(np.nan_to_num(box, nan=np.inf, posinf=np.inf, neginf=-np.inf).tolist())
    columns = _centres_between((box[0] - grid.left) / side, (box[2] - grid.left) / side, shape[1])
    rows = _centres_between((grid.top - box[3]) / side, (grid.top - box[1]) / side, shape[0])
    if rows.start >= rows.stop or columns.start >= columns.stop:
        own = grid.left, grid.top - shape[0] * side, grid.left + shape[1] * side, grid.top
        extents = " and ".join(str(tuple(round(edge, 1) for edge in b)) for b in (own, box))
        raise ValueError(f"{pair} do not overlap: {extents} in the DSM's CRS; check each CRS by gdalinfo")
    return rows, columns


def _centres_between(low: float, high: float, size: int) -> slice:
    return slice(*(int(edge) for edge in np.clip([np.ceil(low - 0.5), np.floor(high + 0.5)], 0, size)))


def _onto_grid(
    chm: HeightFile, heights: Float32[np.ndarray, "rows columns"], grid: Grid, shape: tuple[int, ...]
) -> Float32[np.ndarray, "height width"]:
    """Highest known CHM pixel under k x k points of each pixel of the grid."""
    warp = import_rasterio().warp
    side, finer = grid.resolution, max(1.0, grid.resolution / chm.pixel)
    if shape[0] * shape[1] * finer * finer > MOST_PIXELS:
        raise ValueError(
            f"{chm.path}: its pixels of {chm.pixel:g} m are too many under {shape[0]} x {shape[1]} of "
            f"{side:g} m: must be below 2^31; resample it: "
            f"gdalwarp -r max -tr {side:g} {side:g} {chm.path.name} coarse_{chm.path.name}"
        )
    k = math.floor(finer + 0.5)
    points = np.full((shape[0] * k, shape[1] * k), np.nan, np.float32)
    # Without a CRS both lie in one unnamed frame: any CRS, the same twice, keeps it as it is.
    source = {"src_transform": chm.transform, "src_crs": chm.crs or "EPSG:32631", "src_nodata": np.nan}
    place = place_of(replace(grid, resolution=grid.resolution / k))
    target = {"dst_transform": place, "dst_crs": grid.crs or "EPSG:32631", "dst_nodata": np.nan}
    with refusing_broken(chm.path, "it cannot be brought to the DSM's grid; resample it by gdalwarp"):
        warp.reproject(heights, points, **source, **target, resampling=warp.Resampling.nearest)
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
