"""Gaps as objects: from a mask or a canopy height model to numbered gaps and their measures."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Num, Shaped
from scipy import ndimage

from forestgaps_jax.inference.gap_heights import measure_heights
from forestgaps_jax.inference.gap_shapes import CORNERS_TOUCH, measure_shapes, pixel_sums
from forestgaps_jax.types import Grid

NOT_KNOWN = 255
"""What stands in a mask of integers where it is not known whether there is gap."""

_ROUNDING = 1e-9  # 100 pixels of 0.3 m are 9 m2, whatever the floats say


@dataclass(frozen=True, eq=False)
class Gaps:
    """The gaps of one raster.

    Attributes:
        labels: ``[height, width]`` number of the gap that a pixel belongs to; 0 for none.
        table: a row for each gap, in the order of their numbers; ``pandas.DataFrame(gaps.table)`` takes it.

            - ``gap_id``: number, from 1, by the first pixel from the top left.
            - ``x``, ``y``: centroid of its pixels, metres in the CRS of the grid; may lie outside a bent gap.
            - ``gap_area``: m2, of its pixels.
            - ``perimeter``: m, of its pixels' outer sides, those around holes included: the length of the
              polygon's outline. Longer than a smooth outline, up to 4 / pi times for a circle.
            - ``shape_index``: perimeter / (2 sqrt(pi area)): how much longer than a circle's of that area.
              1.13 for a square, the least that pixels can have.
            - ``at_edge``: the raster ends there, or a pixel beside it is not known: the gap may be larger.
            - ``chm_max``, ``chm_min``, ``chm_mean``, ``chm_sd``, ``chm_gini``, ``chm_range``, where there are
              heights: see `measure_heights`.
        grid: where the raster lies.
        known_area: m2 of the raster where it is known whether there is gap.
        min_area: least m2 of a gap that is kept.
        max_area: greatest m2 of a gap that is kept.
    """

    labels: Int32[np.ndarray, "height width"]
    table: Shaped[np.ndarray, " gaps"]
    grid: Grid
    known_area: float
    min_area: float = 0.0
    max_area: float = math.inf

    def __len__(self) -> int:
        return len(self.table)

    @property
    def pixels(self) -> Int[np.ndarray, " gaps"]:
        """Size of each gap, pixels."""
        return np.rint(self.table["gap_area"] / self.grid.resolution**2).astype(np.int64)


def extract_gaps(
    raster: Shaped[np.ndarray, "height width"],
    resolution: float | Grid = 1.0,
    *,
    threshold: float | None = None,
    inclusive: bool = False,
    valid: Bool[np.ndarray, "height width"] | None = None,
    chm: Num[np.ndarray, "height width"] | None = None,
    min_area: float = 0.0,
    max_area: float = math.inf,
) -> Gaps:
    """Number the gaps of a mask or of a canopy height model, and measure each.

    A gap is a set of gap pixels that touch by their sides or corners. The raster is in memory, whole: 20,000
    x 20,000 pixels take 3.3 GB beside the mask itself, of which 1.6 stay as labels; with heights, about 30
    bytes more for each gap pixel while they are sorted: 12 GB where 70% are gap.

    Args:
        raster: a mask: boolean, or 1 gap, 0 none, and 255 or NaN not known. With ``threshold``: canopy
            height, metres; NaN where not known.
        resolution: pixel size, metres; or the raster's `Grid`, so that positions are in its CRS.
        threshold: canopy height below which a pixel is gap, metres.
        inclusive: a pixel as high as the threshold is gap too (``<=``), as in ForestGapR. Elsewhere in this
            library it is not (``<``).
        valid: further pixels that are not known are False here.
        chm: heights to measure in the gaps, where ``raster`` is a mask, metres; NaN where not known.
        min_area: least size of a gap, m2; smaller ones are left out. As large as this is in.
        max_area: greatest size of a gap, m2; larger ones are left out. As large as this is in.

    Raises:
        ValueError: a mask with other values, heights without a threshold, a threshold that is no height, both
            a threshold and a ``chm``, shapes that differ, or sizes that no gap can have.

    Source: Silva et al. 2019, ForestGapR: an R package for forest gap analysis from canopy height models,
    doi:10.1111/2041-210X.13211.

    >>> mask = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
    >>> gaps = extract_gaps(mask, 2.0, min_area=5.0)
    >>> gaps.table[["gap_area", "perimeter"]].tolist()
    [(12.0, 20.0)]
    >>> gaps.labels.tolist()
    [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    """
    grid = resolution if isinstance(resolution, Grid) else Grid(float(resolution))
    _check(raster, grid.resolution, threshold, inclusive, valid, chm, min_area, max_area)
    if threshold is None:
        gap, known = _read_mask(raster)
    else:
        chm, known = raster, np.isfinite(raster)
        gap = (raster <= threshold if inclusive else raster < threshold) & known
    if valid is not None:
        known, gap = known & valid, gap & valid
    pixel = grid.resolution**2
    labels, count = ndimage.label(gap, CORNERS_TOUCH, output=np.int32)  # type: ignore[misc]  # SciPy has no types
    areas = pixel_sums(labels, count)[0] * pixel
    keep = (areas >= min_area * (1 - _ROUNDING)) & (areas <= max_area * (1 + _ROUNDING))
    _renumber(labels, keep)
    columns = measure_shapes(labels, int(keep.sum()), grid, known)
    if chm is not None:
        columns |= measure_heights(labels, chm, len(columns["gap_id"]))
    return Gaps(
        labels, _as_table(columns), grid, float(known.sum() * pixel), float(min_area), float(max_area)
    )


def _check(
    raster: np.ndarray,
    resolution: float,
    threshold: float | None,
    inclusive: bool,
    valid: Any,
    chm: Any,
    min_area: float,
    max_area: float,
) -> None:
    if not 0 < resolution < math.inf:
        raise ValueError(f"resolution = {resolution}: must be a pixel's side in metres, above 0")
    if not 0 <= min_area <= max_area:
        raise ValueError(f"min_area = {min_area}, max_area = {max_area}: must be m2, 0 or more, and rise")
    if threshold is None and inclusive:
        raise ValueError("inclusive is about a threshold: give one, or leave it; a mask is already decided")
    if threshold is not None:
        if not math.isfinite(threshold):
            raise ValueError(f"threshold = {threshold}: must be a canopy height in metres")
        if chm is not None:
            raise ValueError("with a threshold the raster itself is the canopy height: leave chm")
        if raster.dtype == bool:
            raise ValueError("a threshold was given with a mask: give canopy heights, or leave the threshold")
    for name, other in (("valid", valid), ("chm", chm)):
        if other is not None and other.shape != raster.shape:
            raise ValueError(
                f"{name} has shape {other.shape} and the raster {raster.shape}: must be the same"
            )


def _read_mask(raster: np.ndarray) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Where there is gap, and where that is known."""
    if raster.dtype == bool:
        return raster, np.ones(raster.shape, bool)
    gap = raster == 1
    unknown = np.isnan(raster) if np.issubdtype(raster.dtype, np.floating) else raster == NOT_KNOWN
    wrong = ~(gap | unknown | (raster == 0))
    if wrong.any():
        raise ValueError(
            f"a mask holds 1 (gap), 0 and {NOT_KNOWN} or NaN (not known), and this has {raster[wrong][0]:g}; "
            "canopy heights need a threshold"
        )
    return gap, ~unknown


def _renumber(labels: Int32[np.ndarray, "h w"], keep: Bool[np.ndarray, " gaps"]) -> None:
    """Number the gaps that are kept from 1, in place."""
    if not keep.all():
        numbers = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)]).astype(np.int32)
        np.take(numbers, labels, out=labels, mode="clip")  # the other modes copy


def _as_table(columns: dict[str, np.ndarray]) -> Shaped[np.ndarray, " gaps"]:
    kinds: Any = [(name, values.dtype) for name, values in columns.items()]
    table: Any = np.empty(len(columns["gap_id"]), kinds)
    for name, values in columns.items():
        table[name] = values
    return table
