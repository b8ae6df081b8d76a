"""How much of the ground is gap, cell by cell, and how two such grids agree."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from forestgaps_jax.types import Grid

_ROUNDING = 1e-9  # 5 cells of 3.7 m are 18.5 m, whatever the floats say


@dataclass(frozen=True, eq=False)
class GapFraction:
    """Gap fraction on a grid of square cells.

    Attributes:
        fraction: ``[rows, columns]`` gap pixels / known pixels of the cell; NaN where too few are known.
        known: ``[rows, columns]`` share of the cell's ground that is known; at the raster's end part of a
            cell lies outside, and is not.
        grid: the cells; ``write_geotiff(path, result.fraction, result.grid)`` writes them.
    """

    fraction: Float[np.ndarray, "rows columns"]
    known: Float[np.ndarray, "rows columns"]
    grid: Grid


def gap_fraction(
    mask: Bool[np.ndarray, "height width"],
    valid: Bool[np.ndarray, "height width"] | None,
    resolution: float | Grid,
    cell: float = 100.0,
    min_known: float = 0.5,
) -> GapFraction:
    """Share of gap in square cells, counted from the raster's upper left corner.

    A pixel belongs to the cell that its centre lies in; on a border, to the next.

    Args:
        mask: True where there is gap.
        valid: pixels that are known; None for all.
        resolution: pixel size, metres; or the raster's `Grid`, to place the cells.
        cell: side of a cell, metres; need not be a multiple of the pixel size.
        min_known: least share of a cell's ground that must be known, 0 to 1.

    Raises:
        ValueError: shapes that differ, a cell smaller than a pixel, a share that is none.

    >>> mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    >>> gap_fraction(mask, None, 10.0, cell=20.0).fraction.tolist()
    [[0.75, 0.0]]
    """
    grid = resolution if isinstance(resolution, Grid) else Grid(float(resolution))
    if not 0 < grid.resolution <= cell < math.inf:
        raise ValueError(f"cells of {cell} m and pixels of {grid.resolution} m: a cell must hold a pixel")
    if not 0 <= min_known <= 1:
        raise ValueError(f"min_known = {min_known}: must be a share from 0 to 1")
    if valid is not None and valid.shape != mask.shape:
        raise ValueError(f"valid has shape {valid.shape} and mask {mask.shape}: must be the same")
    known = _cell_sums(np.ones_like(mask) if valid is None else valid, cell / grid.resolution)
    gap = _cell_sums(mask if valid is None else mask & valid, cell / grid.resolution)
    # A cell of 100 m holds up to 334 x 334 pixels of 0.3 m: a little more than itself.
    share = np.minimum(known * grid.resolution**2 / cell**2, 1.0)
    enough = (known > 0) & (share >= min_known)
    fraction = np.divide(gap, known, out=np.full(gap.shape, np.nan), where=enough)
    return GapFraction(fraction, share, replace(grid, resolution=float(cell)))


def _cell_sums(image: Bool[np.ndarray, "h w"], pixels: float) -> Int[np.ndarray, "rows columns"]:
    sums = image
    for axis, size in enumerate(image.shape):
        cells = math.floor((size - 0.5) / pixels + _ROUNDING) + 1
        # The first pixel whose centre is inside.
        first = np.ceil(np.arange(cells) * pixels - 0.5 - _ROUNDING).astype(np.int64)
        sums = np.add.reduceat(sums, np.maximum(first, 0), axis=axis, dtype=np.int64)
    return sums


def gap_fraction_agreement(
    predicted: Float[np.ndarray, "rows columns"], truth: Float[np.ndarray, "rows columns"]
) -> dict[str, float]:
    """How predicted gap fractions agree with true ones, over the cells where both are known.

    Args:
        predicted: gap fraction of each cell; NaN where not known.
        truth: the same of the reference.

    Returns:
        ``n`` cells; ``r2``, 1 - SSE / SST: the share of the truth's variance that the prediction itself
        explains, 1 at best, below 0 where the mean of the truth would be better (not a squared correlation,
        which forgives any bias); ``rmse``, ``mae``, ``bias`` (mean of predicted - truth); ``slope`` and
        ``intercept`` of the least-squares line of predicted over truth. NaN where undefined.

    Raises:
        ValueError: shapes that differ.

    >>> truth = np.array([[0.1, 0.2, 0.3, np.nan]])
    >>> agreement = gap_fraction_agreement(truth + 0.1, truth)
    >>> {name: round(value, 3) for name, value in agreement.items()}
    {'n': 3, 'r2': -0.5, 'rmse': 0.1, 'mae': 0.1, 'bias': 0.1, 'slope': 1.0, 'intercept': 0.1}
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"cells of shape {predicted.shape} and {truth.shape}: must be the same")
    both = np.isfinite(predicted) & np.isfinite(truth)
    x, y = truth[both].astype(np.float64), predicted[both].astype(np.float64)
    if len(x) == 0:
        return {"n": 0} | dict.fromkeys(("r2", "rmse", "mae", "bias", "slope", "intercept"), math.nan)
    error, spread = y - x, float(np.sum((x - x.mean()) ** 2))
    varies = x.min() < x.max()
    slope = float(np.sum((x - x.mean()) * (y - y.mean()))) / spread if varies else math.nan
    return {
        "n": len(x),
        "r2": 1 - float(np.sum(error**2)) / spread if varies else math.nan,
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
        "bias": float(np.mean(error)),
        "slope": slope,
        "intercept": float(y.mean() - slope * x.mean()),
    }
