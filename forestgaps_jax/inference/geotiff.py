"""Maps as Cloud-Optimised GeoTIFFs, written from the top to the bottom."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from forestgaps_jax.data.geotiff import import_rasterio

CUT = 0.5
"""Probability from which a pixel is gap in a mask."""
_CACHE = 256 * 2**20  # bytes; GDAL's own default grows with the machine
_BLOCK = 512
_COLOURS = {0: (233, 236, 239), 1: (231, 111, 81)}  # canopy, gap

WriteRows = Callable[[int, np.ndarray], None]
"""Writes finished rows: the first of them, and values ``[bands, rows, width]``."""


@dataclass(frozen=True)
class MapKind:
    """What the pixels of a map are.

    Attributes:
        name: at the end of the file name.
        text: what a band holds, before "gap below 5 m".
        dtype: of a pixel.
        nodata: value of a pixel that is not known.
        overviews: how GDAL makes coarse pixels of fine ones.
    """

    name: str
    text: str
    dtype: str
    nodata: float
    overviews: str

    def values(self, probability: Float32[np.ndarray, "bands rows width"]) -> np.ndarray:
        """Pixels of this kind; NaN becomes no-data.

        >>> MASK.values(np.array([[[0.2, 0.5, np.nan]]], np.float32)).tolist()
        [[[0, 1, 255]]]
        """
        pixels = probability >= CUT if self.dtype == "uint8" else probability
        return np.where(np.isnan(probability), self.nodata, pixels).astype(self.dtype)


PROBABILITY = MapKind("probability", "probability of ", "float32", -9999.0, "average")
"""float32, so that nothing is rounded and any cut can be chosen later."""
DEVIATION = MapKind("deviation", "standard deviation of the probability of ", "float32", -9999.0, "average")
MASK = MapKind("mask", "", "uint8", 255, "mode")
"""1 where the probability of gap is `CUT` or more, else 0."""


@dataclass(frozen=True)
class MapPlace:
    """Where a map lies.

    Attributes:
        shape: rows and columns.
        transform: affine.Affine, rows southward.
        crs: rasterio.crs.CRS, or None.
    """

    shape: tuple[int, int]
    transform: Any
    crs: Any


@contextmanager
def write_map(
    path: Path, kind: MapKind, place: MapPlace, thresholds: Sequence[float], tags: Mapping[str, str]
) -> Iterator[WriteRows]:
    """Write a map row by row; the file is there, whole, when the context ends without an error.

    GDAL makes a Cloud-Optimised GeoTIFF only of a whole raster, so rows gather in a file beside it.

    Args:
        path: of the GeoTIFF.
        kind: what its pixels are.
        place: where it lies.
        thresholds: canopy height (m) of each band.
        tags: what to say of the whole file.
    """
    rasterio = import_rasterio()
    rows = path.with_suffix(".rows.tif")
    (height, width), count = place.shape, len(thresholds)
    profile = {"height": height, "width": width, "count": count, "dtype": kind.dtype}
    profile |= {"crs": place.crs, "transform": place.transform, "nodata": kind.nodata}
    layout = {"interleave": "band", "blockysize": 16, "compress": "deflate", "zlevel": 1}
    layout |= {"photometric": "minisblack", "bigtiff": "if_safer"}  # 3 bands of bytes are no colours
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE), warnings.catch_warnings():
            # A map without a CRS may lie at 0, 0 with pixels of 1 m.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(rows, "w", driver="GTiff", **profile, **layout) as dataset:
                _describe(dataset, kind, thresholds, tags)
                yield lambda first, values: dataset.write(
                    values, window=rasterio.windows.Window(0, first, width, values.shape[1])
                )
            _optimise(rows, path, kind)
    finally:
        rows.unlink(missing_ok=True)


def _describe(dataset: Any, kind: MapKind, thresholds: Sequence[float], tags: Mapping[str, str]) -> None:
    dataset.update_tags(**tags)
    for band, threshold in enumerate(thresholds, 1):
        dataset.set_band_description(band, f"{kind.text}gap below {threshold:g} m")
        dataset.update_tags(band, threshold=f"{threshold:g}")
    if kind is MASK and len(thresholds) == 1:  # TIFF has colours for a single band only
        dataset.write_colormap(1, _COLOURS)


def _optimise(rows: Path, path: Path, kind: MapKind) -> None:
    import rasterio.shutil

    options = {"blocksize": _BLOCK, "compress": "deflate", "overview_resampling": kind.overviews}
    options |= {"predictor": "yes", "bigtiff": "if_safer", "num_threads": "all_cpus"}
    rasterio.shutil.copy(str(rows), str(path), driver="COG", **options)
