"""How high the canopy is inside each gap."""

import numpy as np
from jaxtyping import Float, Int, Int32, Num, Shaped


def measure_heights(
    labels: Int32[np.ndarray, "height width"], chm: Num[np.ndarray, "height width"], count: int
) -> dict[str, Float[np.ndarray, " gaps"]]:
    """Statistics of the known canopy heights of each gap, by the names of ForestGapR's ``GapStats``.

    Args:
        labels: number of each pixel's gap, from 1; 0 for none.
        chm: canopy height, metres; NaN where not known.
        count: number of gaps.

    Returns:
        ``chm_max``, ``chm_min``, ``chm_mean``, ``chm_range``, and ``chm_sd``, the standard deviation of a
        sample (n - 1), in metres; ``chm_gini``, the Gini coefficient of the heights (see `gini`), of which
        those below 0, noise of the ground, count as 0. NaN where no height is known; ``chm_sd`` and
        ``chm_gini`` also where only one is.

    >>> labels = np.array([[1, 1, 0, 2]], np.int32)
    >>> measure_heights(labels, np.array([[1.0, 3.0, 20.0, np.nan]]), 2)["chm_mean"].tolist()
    [2.0, nan]
    """
    inside = (labels > 0) & np.isfinite(chm)
    group, height = labels[inside] - 1, chm[inside]
    order = np.lexsort((height, group))
    group, height = group[order], height[order].astype(np.float64)
    del inside, order  # a large raster has many gap pixels
    sizes = np.bincount(group, minlength=count)
    lowest, highest = np.full((2, count), np.nan)
    some = sizes > 0
    ends = np.cumsum(sizes)[some]
    lowest[some], highest[some] = height[ends - sizes[some]], height[ends - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(group, height, count) / sizes
        squares = height - mean[group]
        squares *= squares
        sd = np.sqrt(np.bincount(group, squares, count) / np.maximum(sizes - 1, 0))
    del squares
    return {
        "chm_max": highest,
        "chm_min": lowest,
        "chm_mean": mean,
        "chm_sd": sd,
        "chm_gini": _gini_of_sorted(group, np.maximum(height, 0, out=height), sizes),
        "chm_range": highest - lowest,
    }


def gini(values: Shaped[np.ndarray, " n"]) -> float:
    """Gini coefficient: 0 where all values are equal, near 1 where one has nearly all.

    With the correction n / (n - 1) of a sample, as in ForestGapR. NaN of fewer than 2 values, and where all
    are 0.

    Source: Dixon et al. 1987, Bootstrapping the Gini coefficient of inequality, doi:10.2307/1939238.

    Raises:
        ValueError: a value below 0 or not finite.

    >>> gini(np.array([1.0, 1.0, 4.0]))
    0.5
    """
    if not np.all((values >= 0) & np.isfinite(values)):
        raise ValueError("the Gini coefficient is of values that are finite and not below 0")
    group = np.zeros(len(values), np.int64)
    return float(_gini_of_sorted(group, np.sort(values).astype(np.float64), np.array([len(values)]))[0])


def _gini_of_sorted(
    group: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"], sizes: Int[np.ndarray, " groups"]
) -> Float[np.ndarray, " groups"]:
    """Of each group; the groups come one after the other, and rise."""
    total = np.bincount(group, values, len(sizes))
    rank = np.arange(1.0, len(group) + 1)
    rank -= (np.cumsum(sizes) - sizes)[group]
    rank *= values
    weighted = np.bincount(group, rank, len(sizes))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (2 * weighted / total - (sizes + 1)) / (sizes - 1)
