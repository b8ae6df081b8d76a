"""Where each gap lies, how large it is and how long its outline."""

import numpy as np
from jaxtyping import Bool, Float, Int, Int32
from scipy import ndimage

from forestgaps_jax.types import Grid

CORNERS_TOUCH = np.ones((3, 3), bool)
"""Pixels that touch by a side or a corner are one gap."""

_BLOCK = 2**24  # pixels that are counted at once, so that memory stays that of the labels


def measure_shapes(
    labels: Int32[np.ndarray, "height width"],
    count: int,
    grid: Grid,
    known: Bool[np.ndarray, "height width"],
) -> dict[str, np.ndarray]:
    """Place, area and outline of each gap: the columns of `Gaps`, in their order.

    Args:
        labels: number of each pixel's gap, from 1; 0 for none.
        count: number of gaps.
        grid: where the raster lies.
        known: where it is known whether there is gap.

    >>> labels = np.array([[1, 1, 0]], np.int32)
    >>> shapes = measure_shapes(labels, 1, Grid(2.0), labels >= 0)
    >>> [shapes[name].item() for name in ("x", "y", "gap_area", "perimeter")]
    [2.0, -1.0, 8.0, 12.0]
    """
    pixels, rows, columns = pixel_sums(labels, count)
    area, perimeter = pixels * grid.resolution**2, _outer_sides(labels, count) * grid.resolution
    beyond: np.ndarray = ndimage.binary_dilation(~known, CORNERS_TOUCH, border_value=1)
    number = np.arange(1, count + 1, dtype=np.int32)
    return {
        "gap_id": number,
        "x": grid.left + (columns / pixels + 0.5) * grid.resolution,
        "y": grid.top - (rows / pixels + 0.5) * grid.resolution,
        "gap_area": area,
        "perimeter": perimeter,
        "shape_index": perimeter / (2 * np.sqrt(np.pi * area)),
        "at_edge": np.isin(number, labels[beyond]),
    }


def _outer_sides(labels: Int32[np.ndarray, "h w"], count: int) -> Int[np.ndarray, " gaps"]:
    """Sides of each gap's pixels that no other of its pixels shares.

    Pixels of two gaps never share a side: they would be one.
    """
    sides = np.zeros(count + 1, np.int64)
    for image in (labels, labels.T):
        for one, other in ((image[:-1], image[1:]), (image[1:], image[:-1])):
            sides += np.bincount(one[one != other], minlength=count + 1)
        for edge in (image[:1], image[-1:]):
            sides += np.bincount(edge.ravel(), minlength=count + 1)
    return sides[1:]


def pixel_sums(labels: Int32[np.ndarray, "height width"], count: int) -> Float[np.ndarray, "3 gaps"]:
    """Of each label: its pixels, the sum of their rows, and of their columns."""
    sums = np.zeros((3, count + 1))
    step = max(1, _BLOCK // max(1, labels.shape[1]))
    for start in range(0, len(labels), step):
        block = labels[start : start + step]
        rows, columns = np.nonzero(block)
        inside = block[rows, columns]
        for total, weights in zip(sums, (None, rows + start, columns), strict=True):
            total += np.bincount(inside, weights, count + 1)
    return sums[:, 1:]
