"""Where there is gap, read from files: masks of several thresholds, or canopy heights."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from forestgaps_jax.data.geotiff import CHM_BOUNDS, HeightFile, import_rasterio, open_heights
from forestgaps_jax.inference.gaps import NOT_KNOWN
from forestgaps_jax.types import SAME_THRESHOLD, Grid

FilePath = str | PathLike[str]

_DESCRIPTION = re.compile(r"gap below (\d+(\.\d+)?) m")


def read_masks(
    path: FilePath, thresholds: Sequence[float] = ()
) -> Iterator[tuple[float, UInt8[np.ndarray, "height width"], Grid]]:
    """The bands of a gap mask, one at a time: height threshold (metres), mask, place.

    Args:
        path: GeoTIFF as `predict_raster` writes it: a band of 1 (gap), 0 and 255 (not known) for each
            threshold, which its tag ``threshold`` or its description ("gap below 5 m") tells.
        thresholds: those to read, metres; all for none. Where no band tells its own, one for each band.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no raster, pixels that are not square metres, a band that is no mask or does not tell its
            threshold, or a threshold that no band has.
        ImportError: rasterio is not installed.
    """
    with _opened(path) as dataset:
        bands, grid = _bands(dataset, thresholds, path), _grid(dataset, path)
    for threshold, band in [(t, _band_of(t, bands, path)) for t in thresholds or sorted(bands)]:
        with _opened(path) as dataset:
            mask = _mask(dataset, band, path)
        yield threshold, mask, grid


def read_canopy(path: FilePath) -> tuple[Float32[np.ndarray, "height width"], Grid]:
    """Canopy heights, metres; NaN where not known or impossible (see `CHM_BOUNDS`).

    Raises:
        ValueError: no height is possible for a canopy; or as `open_heights`.
        FileNotFoundError: no such file.
        ImportError: rasterio is not installed.
    """
    with open_heights(path, CHM_BOUNDS) as file:
        heights, grid = file.read_southward(), file.grid()
    if not np.isfinite(heights).any():
        low, high = CHM_BOUNDS
        raise ValueError(f"{path}: no height from {low:g} to {high:g} m: is it a canopy height model?")
    return heights, grid


def read_canopy_on(path: FilePath, grid: Grid, shape: tuple[int, int]) -> Float32[np.ndarray, "height width"]:
    """Canopy heights that lie on the grid of a map already.

    Raises:
        ValueError: they lie on another; says how to bring them onto it. Or as `read_canopy`.
        FileNotFoundError: no such file.
    """
    heights, own = read_canopy(path)
    side, (rows, columns) = grid.resolution, shape
    off = math.hypot(own.left - grid.left, own.top - grid.top) / side
    drift = abs(own.resolution / side - 1) * max(shape)
    if heights.shape == shape and off < 0.01 and drift < 0.5:
        return heights
    box = grid.left, grid.top - rows * side, grid.left + columns * side, grid.top
    edges = " ".join(f"{edge:.12g}" for edge in box)
    raise ValueError(
        f"{path}: it lies on another grid than the map; bring it there: gdalwarp -r max "
        f"-tr {side:g} {side:g} -te {edges} {Path(path).name} {Path(path).stem}_on_map.tif"
    )


@contextmanager
def _opened(path: FilePath) -> Iterator[Any]:
    rasterio = import_rasterio()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # A map without a CRS may lie at 0, 0 with pixels of 1 m.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                yield dataset
    except rasterio.errors.RasterioIOError as error:
        raise ValueError(f"{path}: not a raster or cut off; renew it ({error.__cause__ or error})") from error


def _bands(dataset: Any, thresholds: Sequence[float], path: FilePath) -> dict[float, int]:
    """Number of each threshold's band."""
    heights = [_height(dataset, band) for band in dataset.indexes]
    if set(heights) == {None} and len(thresholds) == dataset.count:
        heights = list(thresholds)
    bands = {height: band for band, height in enumerate(heights, 1) if height is not None}
    if len(bands) < dataset.count:
        raise ValueError(
            f"{path}: its {dataset.count} band(s) do not tell a height threshold each: give canopy heights "
            "with --from-chm, or for a mask one --threshold for each band"
        )
    return bands


def _height(dataset: Any, band: int) -> float | None:
    """Of the threshold of a band, by its tag or its description."""
    tag, described = dataset.tags(band).get("threshold"), dataset.descriptions[band - 1] or ""
    found = _DESCRIPTION.search(described)
    try:
        return float(tag or (found.group(1) if found else math.nan)) if tag or found else None
    except ValueError:
        return None


def _band_of(threshold: float, bands: dict[float, int], path: FilePath) -> int:
    for height, band in bands.items():
        if abs(height - threshold) < SAME_THRESHOLD:
            return band
    heights = ", ".join(f"{height:g}" for height in sorted(bands))
    raise ValueError(f"{path}: it has no gaps below {threshold:g} m, only below {heights} m")


def _mask(dataset: Any, band: int, path: FilePath) -> UInt8[np.ndarray, "height width"]:
    mask = dataset.read(band)
    unknown = (mask == NOT_KNOWN) | (mask == dataset.nodata)
    wrong = mask[~unknown & (mask != 0) & (mask != 1)]
    if wrong.size:
        raise ValueError(
            f"{path}: band {band} holds {wrong[0]:g} and is no gap mask (1 gap, 0 none, 255 not known): give "
            "the file of predict that ends in _mask.tif, or for canopy heights say --from-chm"
        )
    return np.where(unknown, NOT_KNOWN, mask == 1).astype(np.uint8)[:: -1 if dataset.transform.e > 0 else 1]


def _grid(dataset: Any, path: FilePath) -> Grid:
    if dataset.crs is not None and dataset.crs.is_geographic:
        raise ValueError(f"{path}: its pixels are in degrees; reproject the DSM to metres and predict again")
    place = dataset.transform
    return HeightFile(Path(path), dataset.shape, place, dataset.crs, CHM_BOUNDS, dataset).grid()
