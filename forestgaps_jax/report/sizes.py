"""Sizes of gaps, predicted against true, on the test tiles put together again."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from forestgaps_jax.figures.lines import plot_lines
from forestgaps_jax.inference.gap_sizes import fit_zeta
from forestgaps_jax.inference.gaps import Gaps, extract_gaps
from forestgaps_jax.report.examination import Examination
from forestgaps_jax.report.formats import count, height, number
from forestgaps_jax.report.pictures import inline_svg

_FEWEST = 10
"""Gaps from which an exponent is told."""


def gap_sizes(examination: Examination) -> dict[str, Any]:
    """Number, areas and zeta exponent of the gaps at each threshold, true and predicted."""
    rows, charts = [], []
    for index, threshold in enumerate(examination.thresholds):
        by_kind: dict[str, list[Gaps]] = {"truth": [], "prediction": []}
        for truth, predicted, valid, grid in ground_by_site(examination, index):
            by_kind["truth"].append(extract_gaps(truth, grid, valid=valid))
            by_kind["prediction"].append(extract_gaps(predicted, grid, valid=valid))
        charts.append(_chart(index, threshold, {kind: _areas(gaps) for kind, gaps in by_kind.items()}))
        rows.append((height(threshold), [(kind, *_summary(gaps)) for kind, gaps in by_kind.items()]))
    return {"rows": rows, "charts": charts}


def _chart(index: int, threshold: float, areas: Mapping[str, Float[np.ndarray, " gaps"]]) -> str:
    some = any(map(len, areas.values()))
    smallest = min(each.min() for each in areas.values() if len(each)) if some else math.nan
    lines = {}
    for kind, each in areas.items():
        sizes, counts = at_least(each)
        # All gaps are at least as large as the smallest of either kind: the line begins there.
        lines[kind] = np.append(smallest, sizes), np.append(float(len(each)) or math.nan, counts)
    scale = {"xscale": "log", "yscale": "log"} if some else {}
    axes: dict[str, Any] = {"xlabel": "area (m²)", "ylabel": "gaps at least this large", **scale}
    figure = plot_lines(lines, title=f"below {height(threshold)}", width=2.6, steps=True, **axes)
    label = f"gaps below {height(threshold)} by size, true and predicted"
    return inline_svg(figure, f"sizes-{index}", label)


def ground_by_site(examination: Examination, index: int) -> Iterator[tuple[Any, Any, Any, Any]]:
    """True gaps, predicted gaps, what is known and the grid of each site, its test tiles put together."""
    threshold, size = examination.thresholds[index], examination.size
    for number_, site in enumerate(examination.sites):
        own = np.flatnonzero(examination.places[:, 0] == number_)
        if not len(own):
            continue
        predicted, tested = np.zeros(site.shape, bool), np.zeros(site.shape, bool)
        for tile in own:
            _, row, column = examination.places[tile]
            window = np.s_[row : row + size, column : column + size]
            predicted[window], tested[window] = examination.predicted[index, tile], True
        yield site.chm < threshold, predicted, tested & site.valid, site.grid


def at_least(
    areas: Float[np.ndarray, " gaps"],
) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, " sizes"]]:
    """Each area that occurs, and how many gaps have at least that.

    >>> [values.tolist() for values in at_least(np.array([2.0, 9.0, 2.0]))]
    [[2.0, 9.0], [3.0, 1.0]]
    """
    sizes, counts = np.unique(areas, return_counts=True)
    return sizes, np.cumsum(counts[::-1])[::-1].astype(float)


def _areas(gaps: list[Gaps]) -> Float[np.ndarray, " gaps"]:
    return np.concatenate([each.table["gap_area"] for each in gaps])


def _summary(gaps: list[Gaps]) -> tuple[str, ...]:
    areas = _areas(gaps)
    known = sum(each.known_area for each in gaps)
    some = len(areas) > 0
    return (
        count(len(areas)),
        number(len(areas) / known * 1e4 if known else math.nan, 1),
        number(float(np.median(areas)) if some else math.nan, 1),
        number(float(areas.mean()) if some else math.nan, 1),
        number(float(areas.max()) if some else math.nan, 0),
        _exponent(gaps),
    )


def _exponent(gaps: list[Gaps]) -> str:
    """Of sizes in pixels, which compare only where these are of one size; of enough gaps."""
    resolutions = [each.grid.resolution for each in gaps]
    if not np.allclose(resolutions, resolutions[0]) or sum(map(len, gaps)) < _FEWEST:
        return number(math.nan)
    fit = fit_zeta(np.concatenate([each.pixels for each in gaps]))
    return (
        f"{number(fit.exponent, 2)} ± {number(fit.standard_error, 2)}" if math.isfinite(fit.exponent) else "–"
    )
