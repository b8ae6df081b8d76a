"""What a forester reads off the gaps of a site."""

import math

import numpy as np

from forestgaps_jax.inference.gap_heights import gini
from forestgaps_jax.inference.gap_sizes import ZetaFit, fit_zeta
from forestgaps_jax.inference.gaps import Gaps

_HECTARE = 10_000.0  # m2


def fit_gap_sizes(gaps: Gaps, truncated: bool = False) -> ZetaFit:
    """The size distribution of gaps, in pixels, from the least size that was kept.

    Args:
        gaps: as `extract_gaps` gives them.
        truncated: the law ends at the greatest size that was kept. By default it has no end, as in the
            literature, also where larger gaps were left out.

    Raises:
        ValueError: ``truncated`` with gaps of any size.
    """
    pixel = gaps.grid.resolution**2
    kmin = max(1, math.ceil(gaps.min_area / pixel * (1 - 1e-9)))
    if not truncated:
        return fit_zeta(gaps.pixels, kmin)
    if math.isinf(gaps.max_area):
        raise ValueError("truncated needs gaps with a greatest size: extract_gaps(..., max_area=10_000)")
    return fit_zeta(gaps.pixels, kmin, math.floor(gaps.max_area / pixel * (1 + 1e-9)))


def gap_statistics(gaps: Gaps) -> dict[str, float]:
    """Summary of a site's gaps, as plain numbers; NaN where undefined.

    Args:
        gaps: as `extract_gaps` gives them.

    Returns:
        - ``gaps``: how many; ``gaps_at_edge``: of these, cut by the edge or by unknown ground.
        - ``known_ha``: ground on which it is known whether there is gap, ha.
        - ``gap_area``: m2 together; ``gap_fraction``: of the known ground. Of the gaps of the sizes that were
          kept: without limits that of the mask.
        - ``gaps_per_ha``, of known ground.
        - ``area_min``, ``area_mean``, ``area_median``, ``area_max``: m2.
        - ``area_gini``: inequality of the areas (see `gini`).
        - ``shape_index_mean``.
        - ``zeta_exponent``, ``zeta_standard_error``: of the size distribution in pixels (see `fit_zeta`).

    >>> from forestgaps_jax.inference.gaps import extract_gaps
    >>> statistics = gap_statistics(extract_gaps(np.array([[1, 1, 0, 0, 1]], bool), 10.0))
    >>> [statistics[name] for name in ("gaps", "gap_area", "gap_fraction", "gaps_per_ha")]
    [2, 300.0, 0.6, 40.0]
    """
    area, fit = gaps.table["gap_area"], fit_gap_sizes(gaps)
    known_ha, some = gaps.known_area / _HECTARE, len(gaps) > 0
    return {
        "gaps": len(gaps),
        "gaps_at_edge": int(gaps.table["at_edge"].sum()),
        "known_ha": known_ha,
        "gap_area": float(area.sum()),
        "gap_fraction": float(area.sum() / gaps.known_area) if known_ha else math.nan,
        "gaps_per_ha": len(gaps) / known_ha if known_ha else math.nan,
        "area_min": float(area.min()) if some else math.nan,
        "area_mean": float(area.mean()) if some else math.nan,
        "area_median": float(np.median(area)) if some else math.nan,
        "area_max": float(area.max()) if some else math.nan,
        "area_gini": gini(area),
        "shape_index_mean": float(gaps.table["shape_index"].mean()) if some else math.nan,
        "zeta_exponent": fit.exponent,
        "zeta_standard_error": fit.standard_error,
    }
