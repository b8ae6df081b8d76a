"""A tile in square cells of several pixels: the lowest surface in each, and what the ground there may be."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from forestgaps_jax.models.surface import opening

_SMOOTHING = 4.0
"""Standard deviation, in cells, of the Gaussian over the coarse ground."""


class Cells(NamedTuple):
    """A tile's cells.

    Attributes:
        lowest: known surface in each; 0 where none is known.
        known: whether any is.
        detail: each pixel's height above the lowest, row by row; 0 where not known.
    """

    lowest: Float[Array, "batch rows columns 1"]
    known: Bool[Array, "batch rows columns 1"]
    detail: Float[Array, "batch rows columns pixels"]


def split_into_cells(
    heights: Float[Array, "batch height width 1"], known: Bool[Array, "batch height width 1"], side: int
) -> Cells:
    """Cut tiles into cells.

    Args:
        heights: of the surface.
        known: where it is known.
        side: of a cell, pixels; height and width are multiples of it.
    """
    batch, height, width, _ = heights.shape
    split = jnp.where(known, heights, jnp.inf).reshape(batch, height // side, side, width // side, side)
    pixels = split.swapaxes(2, 3).reshape(batch, height // side, width // side, side * side)
    lowest = jnp.min(pixels, axis=-1, keepdims=True)
    some = jnp.isfinite(lowest)
    lowest = jnp.where(some, lowest, 0.0)
    return Cells(lowest, some, jnp.where(jnp.isfinite(pixels), pixels - lowest, 0.0))


def windows_in_cells(opening_windows: Sequence[int], side: int) -> tuple[int, ...]:
    """Sides of openings in cells, from those in pixels: each reaches one cell at least, each comes once.

    >>> windows_in_cells((5, 9, 17, 33, 65), side=4)
    (3, 5, 9, 17)
    """
    return tuple(sorted({2 * max(1, round(window / (2 * side))) + 1 for window in opening_windows}))


def ground_candidates(
    lowest: Float[Array, "batch rows columns 1"],
    known: Bool[Array, "batch rows columns 1"],
    windows: Sequence[int],
) -> Float[Array, "batch rows columns candidates"]:
    """What the ground of each cell may be: one candidate, and two more for each window.

    The lowest surface itself; its grey openings; and its openings on a slope: flat windows fail there, so
    the coarse ground (the widest opening but one, or the only one, smoothed) is taken off before and put
    back after.

    Args:
        lowest: surface in each cell.
        known: where it is known.
        windows: sides of the openings, cells, rising.

    Returns:
        Heights, 0 where not known.
    """
    opened = [jnp.where(known, opening(lowest, known, window), 0.0) for window in windows]
    coarse = smooth(opened[-2:][0], known, _SMOOTHING)
    above = jnp.where(known, lowest - coarse, 0.0)
    followed = [jnp.where(known, opening(above, known, window) + coarse, 0.0) for window in windows]
    return jnp.concatenate([lowest, *opened, *followed], axis=-1)


def smooth(
    heights: Float[Array, "batch rows columns 1"],
    known: Bool[Array, "batch rows columns 1"],
    deviation: float,
) -> Float[Array, "batch rows columns 1"]:
    """Mean of the known heights around each cell, weighted by a Gaussian.

    Args:
        heights: 0 where not known.
        known: where they are known.
        deviation: standard deviation of the Gaussian, cells.
    """

    def blurred(x: Array) -> Array:
        for axis in (1, 2):
            apart = jnp.arange(x.shape[axis])[:, None] - jnp.arange(x.shape[axis])
            weights = jnp.exp(-0.5 * (apart / deviation) ** 2)
            x = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 0), precision="highest"), -1, axis)
        return x

    return blurred(heights) / jnp.maximum(blurred(known.astype(heights.dtype)), 1e-6)
