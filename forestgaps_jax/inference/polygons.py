"""Gaps as polygons: to GeoPackage, for QGIS and other GIS."""

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from forestgaps_jax.inference.gaps import Gaps

_LAYER_NAME = re.compile(r"[^\W\d][\w.\- ]*")


def gap_polygons(gaps: Gaps) -> Shaped[np.ndarray, " gaps"]:
    """The outline of each gap along its pixels' sides, as a valid shapely ``MultiPolygon``.

    In the order of the table. Parts of a gap that touch only at a corner are parts of one MultiPolygon. Areas
    and outlines are those of the table, exactly.

    Raises:
        ImportError: shapely or rasterio is not installed.

    >>> from forestgaps_jax.inference.gaps import extract_gaps
    >>> polygons = gap_polygons(extract_gaps(np.array([[1, 0], [0, 1]], bool), 2.0))
    >>> [(polygon.geom_type, len(polygon.geoms), polygon.area) for polygon in polygons]
    [('MultiPolygon', 2, 8.0)]
    """
    features, affine, shapely, _ = _import_gis()
    side = gaps.grid.resolution
    place = affine(side, 0, gaps.grid.left, 0, -side, gaps.grid.top)
    parts: list[list[Any]] = [[] for _ in range(len(gaps))]
    # Joined across corners, GDAL's rings would cross themselves there.
    for shape, label in features.shapes(gaps.labels, gaps.labels > 0, connectivity=4, transform=place):
        parts[int(label) - 1].append(shapely.geometry.shape(shape))
    polygons = np.array([shapely.MultiPolygon(part) for part in parts] or np.empty(0), object)
    invalid = ~shapely.is_valid(polygons)
    polygons[invalid] = shapely.make_valid(polygons[invalid], method="structure", keep_collapsed=False)
    return polygons


def write_geopackage(
    path: str | os.PathLike[str],
    layers: Mapping[str, Gaps] | Iterable[tuple[str, Gaps]],
    overwrite: bool = False,
) -> None:
    """Write gaps as a GeoPackage: in each layer a feature for each gap, with its row of the table.

    A layer without gaps has its columns all the same. The file appears whole or not at all.

    Args:
        path: of the file, which ends in ``.gpkg``; its folder must be there.
        layers: gaps by the name of their layer; or pairs of both, read one by one, so that one raster at a
            time needs to be in memory.
        overwrite: replace a file of that name.

    Raises:
        FileExistsError: the file is there, and ``overwrite`` is False.
        FileNotFoundError: the folder is missing.
        ValueError: another ending, no layer, or a layer's name that is there twice or that no GIS could use.
        ImportError: pyogrio, shapely or rasterio is not installed.
    """
    path = Path(path)
    if path.suffix != ".gpkg":
        raise ValueError(f"{path}: a GeoPackage's name ends in .gpkg")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another name, or allow to overwrite it")
    _import_gis()
    partial = path.with_name(f".{path.stem}.{os.getpid()}.gpkg")
    pairs: Any = layers.items() if isinstance(layers, Mapping) else layers
    written: set[str] = set()
    try:
        for name, gaps in pairs:
            _check_name(name, written)
            _write_layer(partial, name, gaps)
            written.add(name)
        if not written:
            raise ValueError("there is no layer to write: give gaps by the name of their layer")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_name(name: str, written: set[str]) -> None:
    if not _LAYER_NAME.fullmatch(name):
        raise ValueError(f"layer {name!r}: a name is a letter, then letters, digits, _ . - and spaces")
    if name in written:
        raise ValueError(f"layer {name!r} is there twice: give each its own name")


def _write_layer(path: Path, name: str, gaps: Gaps) -> None:
    _, _, shapely, write = _import_gis()
    columns = gaps.table.dtype.names or ()
    with warnings.catch_warnings():
        # A raster without a CRS has gaps without one.
        warnings.filterwarnings("ignore", "'crs' was not provided")
        write(
            str(path),
            geometry=shapely.to_wkb(gap_polygons(gaps)),
            field_data=[np.ascontiguousarray(gaps.table[column]) for column in columns],
            fields=np.array(columns, object),
            layer=name,
            driver="GPKG",
            geometry_type="MultiPolygon",
            crs=gaps.grid.crs,
        )


def _import_gis() -> tuple[Any, Any, Any, Any]:
    """``rasterio.features``, its ``Affine``, shapely, and pyogrio's writer."""
    try:
        import rasterio.features
        import shapely.geometry
        from pyogrio.raw import write
    except ImportError as error:
        raise ImportError(
            "gap polygons need rasterio, shapely and pyogrio: pip install rasterio shapely pyogrio"
        ) from error
    return rasterio.features, rasterio.Affine, shapely, write
