"""Windows of GeoTIFF pairs that lie on one grid, read from disk one at a time, by several threads."""

import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from forestgaps_jax.data.geotiff import (
    CHM_BOUNDS,
    DSM_BOUNDS,
    FilePath,
    HeightFile,
    import_rasterio,
    open_heights,
    refusing_broken,
    site_name,
)
from forestgaps_jax.data.tiff import LeftOut
from forestgaps_jax.types import Grid

_SLACK = 0.01  # of a pixel that the two grids of a pair may be apart
_CACHE = 128 * 2**20  # bytes of decoded blocks; GDAL's own default is a twentieth of the machine
_MOST_OPEN = 32  # files of a thread; systems allow a process some 1000


class UnreadableError(Exception):
    """A window could not be read.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, message: str):
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, eq=False)
class Pair:
    """A DSM and a CHM on disk, and the ground that both show.

    Attributes:
        name: how tables and errors call it.
        dsm: surface heights; closed.
        chm: canopy heights; closed.
        grid: where the common ground lies.
        shape: rows and columns that both have, south and east from where both begin.
        corners: row and column where these begin in the DSM, and in the CHM; rows from the north.
    """

    name: str
    dsm: HeightFile
    chm: HeightFile
    grid: Grid
    shape: tuple[int, int]
    corners: tuple[tuple[int, int], tuple[int, int]]


def open_pair(dsm_path: FilePath, chm_path: FilePath, *, name: str = "") -> Pair:
    """Look at a pair without reading a pixel; its name is by default that of `read_site`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is no raster of heights as `read_site` takes them, or both are one file, or do not
            overlap, or lie on different grids.
        ImportError: rasterio is not installed.
    """
    pair = f"{dsm_path} (DSM) and {chm_path} (CHM)"
    with open_heights(dsm_path, DSM_BOUNDS) as dsm, open_heights(chm_path, CHM_BOUNDS) as chm:
        grid = dsm.grid()
        if dsm.path.samefile(chm.path):
            raise ValueError(f"{pair}: the same raster was given twice; CHM = DSM - terrain is needed")
        row, column = _shift(dsm, chm, pair)
    first = max(row, 0), max(column, 0)
    last = min(dsm.shape[0], row + chm.shape[0]), min(dsm.shape[1], column + chm.shape[1])
    shape = last[0] - first[0], last[1] - first[1]
    if min(shape) <= 0:
        raise ValueError(f"{pair} do not overlap: {dsm.box} and {chm.box}; check each by gdalinfo")
    left, top = grid.left + first[1] * grid.resolution, grid.top - first[0] * grid.resolution
    corners = first, (first[0] - row, first[1] - column)
    return Pair(name or site_name(dsm_path), dsm, chm, replace(grid, left=left, top=top), shape, corners)


def _shift(dsm: HeightFile, chm: HeightFile, pair: str) -> tuple[int, int]:
    """Row and column of the DSM's grid where the CHM begins."""
    grid, other = dsm.grid(), chm.grid()
    if grid.crs != other.crs:
        raise _other_grid(dsm, chm, pair, "lie in different CRSs")
    side, size = grid.resolution, other.resolution
    near = np.array([grid.top - other.top, other.left - grid.left]) / side
    far = near + np.array(chm.shape) * size / side - chm.shape
    if (np.abs([near - near.round(), far - near.round()]) > _SLACK).any():
        problem = (
            f"are {near[0]:g} rows and {near[1]:g} columns apart, with pixels of {side:g} and {size:g} m"
        )
        raise _other_grid(dsm, chm, pair, problem)
    return round(near[0]), round(near[1])


def _other_grid(dsm: HeightFile, chm: HeightFile, pair: str, problem: str) -> ValueError:
    left, bottom, right, top = dsm.box
    code = None if dsm.crs is None else dsm.crs.to_epsg()
    place = f"-te {left:.12g} {bottom:.12g} {right:.12g} {top:.12g} -tr {dsm.pixel:.12g} {dsm.pixel:.12g}"
    todo = f"gdalwarp -r max -t_srs EPSG:{code or '...'} {place} {chm.path.name} aligned_{chm.path.name}"
    return ValueError(
        f"{pair} {problem}: what is read from disk tile by tile must lie on one grid, or be shifted by whole "
        f"pixels; align them first: {todo}, or read them by read_site, which resamples in memory"
    )


class WindowReader:
    """Reads windows of pairs; each thread has open files of its own, which are closed when it ends."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __call__(
        self, pair: Pair, row: int, column: int, height: int, width: int | None = None
    ) -> Float32[np.ndarray, "height width 2"]:
        """DSM and CHM of a window of the common ground, metres; NaN where not known. By default a square.

        Raises:
            UnreadableError: a file is broken, cut off or gone.
        """
        files = zip((pair.dsm, pair.chm), pair.corners, strict=True)
        size = height, width or height
        return np.stack(
            [self._read(file, row + top, column + left, *size) for file, (top, left) in files], -1
        )

    def _read(
        self, file: HeightFile, row: int, column: int, height: int, width: int
    ) -> Float32[np.ndarray, "height width"]:
        try:
            return _columns_of(self._opened(file), column, width).read_southward(row, row + height)
        except (ValueError, OSError) as error:
            raise UnreadableError(file.path, str(error)) from error

    def _opened(self, file: HeightFile) -> HeightFile:
        if not hasattr(self._local, "opened"):
            # For the whole process, until it ends: GDAL keeps what its threads have read in one place.
            import_rasterio().Env(GDAL_CACHEMAX=_CACHE).__enter__()
            # What falls out is closed: nothing else holds it.
            self._local.opened = lru_cache(_MOST_OPEN)(_open_again)
        return self._local.opened(file)


def _open_again(file: HeightFile) -> HeightFile:
    """The file with a dataset of its own; what `open_heights` has checked is not checked again."""
    with refusing_broken(file.path):
        dataset = import_rasterio().open(file.path)
    if dataset.shape != file.shape:
        raise ValueError(f"{file.path}: it had {file.shape} pixels at first, and now has {dataset.shape}")
    return replace(file, dataset=dataset)


def _columns_of(file: HeightFile, first: int, width: int) -> HeightFile:
    """The file as if it had only these columns; where they lie on the ground is not told."""
    left_out = None if file.left_out is None else _LeftOutFrom(**vars(file.left_out), first=first)
    shape, dataset = (file.shape[0], width), _Columns(file.dataset, first)
    return replace(file, shape=shape, dataset=dataset, left_out=left_out)


class _Columns:
    """A dataset of rasterio whose columns are counted from one of its."""

    def __init__(self, dataset: Any, first: int):
        self._dataset, self._first = dataset, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read(self, band: int, *, window: Any) -> np.ndarray:
        return self._dataset.read(band, window=self._moved(window))

    def read_masks(self, band: int, *, window: Any) -> np.ndarray:
        return self._dataset.read_masks(band, window=self._moved(window))

    def _moved(self, window: Any) -> Any:
        return type(window)(window.col_off + self._first, window.row_off, window.width, window.height)


@dataclass(frozen=True, eq=False, kw_only=True)
class _LeftOutFrom(LeftOut):
    """Blocks that are left out, where columns are counted from ``first``."""

    first: int

    def pixels(self, first: int, last: int, width: int) -> Bool[np.ndarray, "rows width"]:
        return super().pixels(first, last, self.first + width)[:, self.first :]
