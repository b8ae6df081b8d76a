"""From a map to the gaps of a site in files: polygons, a table, a summary, a figure."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from forestgaps_jax.figures import plot_gap_sizes
from forestgaps_jax.inference.gap_maps import read_canopy, read_canopy_on, read_masks
from forestgaps_jax.inference.gap_summary import fit_gap_sizes, gap_statistics
from forestgaps_jax.inference.gaps import Gaps, extract_gaps
from forestgaps_jax.inference.polygons import write_geopackage
from forestgaps_jax.metrics import to_json

FilePath = str | PathLike[str]

_DECIMALS = 3


def survey_gaps(
    raster: FilePath,
    out: FilePath,
    *,
    thresholds: Sequence[float] = (),
    from_chm: bool = False,
    inclusive: bool = False,
    chm: FilePath | None = None,
    min_area: float = 1.0,
    max_area: float = float("inf"),
    overwrite: bool = False,
) -> dict[float, dict[str, float]]:
    """Extract the gaps of a map at each threshold and write them, named after ``out``.

    - ``.gpkg``: a layer ``gaps_5m`` for each threshold, a polygon for each gap;
    - ``.csv``: the same gaps as a table, without outlines, empty for NaN;
    - ``.json``: what this function returns, null for NaN;
    - ``.png``: how many gaps there are of which size, and the fitted power law.

    Rasters are in memory whole, one threshold at a time (see `extract_gaps`).

    Args:
        raster: mask as `predict` writes it; or canopy heights, with ``from_chm``.
        out: the GeoPackage.
        thresholds: metres; of a mask, by default all that it has.
        from_chm: ``raster`` is a canopy height model.
        inclusive: of canopy heights, those of the threshold itself are gap too.
        chm: canopy heights on the grid of the mask, measured in each gap.
        min_area: least size of a gap, m2.
        max_area: greatest size of a gap, m2.
        overwrite: replace files of these names.

    Returns:
        `gap_statistics` by threshold.

    Raises:
        FileExistsError: one of the files is there, and ``overwrite`` is False.
        FileNotFoundError: no such raster, or no folder for ``out``.
        ValueError: rasters or settings that do not serve.
        ImportError: rasterio, shapely, pyogrio or matplotlib is not installed.
    """
    out = Path(out)
    _check(out, thresholds, from_chm, inclusive, chm, overwrite)
    options = {"min_area": min_area, "max_area": max_area}
    if from_chm:
        found = _gaps_of_canopy(raster, thresholds, options | {"inclusive": inclusive})
    else:
        found = _gaps_of_masks(raster, thresholds, chm, options)
    statistics: dict[float, dict[str, float]] = {}
    sizes, fits, rows, pixel_area = {}, {}, [], 1.0

    def layers() -> Iterator[tuple[str, Gaps]]:
        nonlocal pixel_area
        for threshold, gaps in found:
            statistics[threshold] = gap_statistics(gaps)
            sizes[threshold], fits[threshold] = gaps.pixels, fit_gap_sizes(gaps)
            rows.append((threshold, gaps.table))
            pixel_area = gaps.grid.resolution**2
            yield f"gaps_{threshold:g}m", gaps

    write_geopackage(out, layers(), overwrite)
    _write_table(out.with_suffix(".csv"), rows)
    out.with_suffix(".json").write_text(json.dumps(to_json(statistics), indent=1), encoding="utf-8")
    kmin = next(iter(fits.values())).kmin
    figure = plot_gap_sizes(sizes, {t: fit.exponent for t, fit in fits.items()}, kmin, pixel_area)
    figure.savefig(out.with_suffix(".png"), dpi=120)
    return statistics


def format_gap_table(statistics: dict[float, dict[str, float]]) -> str:
    """Statistics by threshold (see `gap_statistics`) as lines of text."""
    lines = [
        " height     gaps    per ha   of ground   total ha    mean m2  median m2    largest m2 "
        "  zeta exponent"
    ]
    for threshold, row in statistics.items():
        exponent = f"{row['zeta_exponent']:.2f} ± {row['zeta_standard_error']:.2f}"
        lines.append(
            f"{threshold:5g} m {row['gaps']:8,} {row['gaps_per_ha']:9.1f} {row['gap_fraction']:11.1%} "
            f"{row['gap_area'] / 1e4:10.2f} {row['area_mean']:10.1f} {row['area_median']:10.1f} "
            f"{row['area_max']:13,.1f}   {exponent:>13}"
        )
    return "\n".join(lines)


def _check(
    out: Path, thresholds: Sequence[float], from_chm: bool, inclusive: bool, chm: Any, overwrite: bool
) -> None:
    if from_chm and not thresholds:
        raise ValueError("canopy heights need thresholds: --threshold 5 10 (metres)")
    if from_chm and chm is not None:
        raise ValueError("the raster itself is the canopy height: leave --chm")
    if inclusive and not from_chm:
        raise ValueError("a mask is already decided: --inclusive needs --from-chm")
    if len(set(thresholds)) < len(thresholds):
        raise ValueError(f"thresholds {', '.join(f'{t:g}' for t in thresholds)}: one is there twice")
    there = [path for path in map(out.with_suffix, (".gpkg", ".csv", ".json", ".png")) if path.exists()]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} exists: name another --out, or say --overwrite")


def _gaps_of_canopy(
    raster: FilePath, thresholds: Sequence[float], options: dict[str, Any]
) -> Iterator[tuple[float, Gaps]]:
    heights, grid = read_canopy(raster)
    for threshold in thresholds:
        yield threshold, extract_gaps(heights, grid, threshold=threshold, **options)


def _gaps_of_masks(
    raster: FilePath, thresholds: Sequence[float], chm: FilePath | None, options: dict[str, Any]
) -> Iterator[tuple[float, Gaps]]:
    heights = None
    for threshold, mask, grid in read_masks(raster, thresholds):
        if heights is None and chm is not None:
            heights = read_canopy_on(chm, grid, mask.shape)
        yield threshold, extract_gaps(mask, grid, chm=heights, **options)


def _write_table(path: Path, rows: Sequence[tuple[float, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["threshold", *rows[0][1].dtype.names])
        for threshold, table in rows:
            for gap in table.tolist():
                writer.writerow([f"{threshold:g}", *map(_as_text, gap)])


def _as_text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, _DECIMALS)
    return int(value)
