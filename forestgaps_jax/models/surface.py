"""What morphology says of the ground, computed from the tile before the network sees it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def surface_channels(
    heights: Float[Array, "batch height width 1"],
    known: Bool[Array, "batch height width 1"],
    detrend: bool,
    opening_windows: Sequence[int],
) -> Float[Array, "batch height width channels"]:
    """What the network sees of a tile: its surface, and the surface above its own grey openings.

    So it starts from what needs no training (`forestgaps_jax.inference.opening_baseline`), at several widths,
    instead of learning it anew.

    Args:
        heights: of the surface, 0 where not known.
        known: where it is known.
        detrend: take off the tile's plane first.
        opening_windows: sides of the windows, pixels.
    """
    if detrend:
        heights = remove_plane(heights, known)
    above = [jnp.where(known, heights - opening(heights, known, side), 0.0) for side in opening_windows]
    return jnp.concatenate([heights, *above], axis=-1)


def remove_plane(
    heights: Float[Array, "batch height width 1"], known: Bool[Array, "batch height width 1"]
) -> Float[Array, "batch height width 1"]:
    """Take off each tile's least-squares plane, so that no tilt of the ground reaches the network.

    Canopy height is surface minus ground: a plane added to the surface changes no label, and what takes
    off the plane gives the same on every hillside.

    Args:
        heights: of the surface, about 0 (float32 keeps millimetres there), 0 where not known.
        known: where the surface is known; a tile that is known only along a line, or in a spot too small to
            fix a plane (a few pixels), loses its mean only.

    Returns:
        Heights above the plane, 0 where not known.
    """
    _, height, width, _ = heights.shape
    y = jnp.linspace(-1.0, 1.0, height)[:, None, None] * jnp.ones((1, width, 1))
    x = jnp.linspace(-1.0, 1.0, width)[None, :, None] * jnp.ones((height, 1, 1))
    weight = known.astype(jnp.float32)
    pixels = jnp.maximum(jnp.sum(weight, axis=(1, 2, 3)), 1.0)

    def mean(value: Array) -> Array:
        return jnp.sum(value * weight, axis=(1, 2, 3)) / pixels

    def spread(value: Array) -> Array:
        return value - mean(value)[:, None, None, None]

    y, x, heights = (spread(value) for value in (y[None], x[None], heights))
    yy, xx, xy = mean(y * y), mean(x * x), mean(x * y)
    yh, xh = mean(y * heights), mean(x * heights)
    determinant = yy * xx - xy * xy
    singular = determinant < 1e-6
    scale = jnp.where(singular, 0.0, 1.0 / jnp.where(singular, 1.0, determinant))
    along_y, along_x = (xx * yh - xy * xh) * scale, (yy * xh - xy * yh) * scale
    plane = along_y[:, None, None, None] * y + along_x[:, None, None, None] * x
    return jnp.where(known, heights - plane, 0.0)


def opening(
    heights: Float[Array, "batch height width 1"], known: Bool[Array, "batch height width 1"], window: int
) -> Float[Array, "batch height width 1"]:
    """Grey opening by a square: the highest of the lowest surfaces of all windows over a pixel.

    Windows are cut off at the edge of the tile; pixels that are not known are in none.

    Args:
        heights: of the surface, metres.
        known: where it is known.
        window: side of the square, pixels, odd.

    Returns:
        The opened surface, ``heights`` or lower where known.
    """
    lowest = _extreme(jnp.where(known, heights, jnp.inf), window, jnp.minimum, jnp.inf)
    return _extreme(jnp.where(jnp.isfinite(lowest), lowest, -jnp.inf), window, jnp.maximum, -jnp.inf)


def _extreme(x: Array, window: int, of, outside: float) -> Array:
    """Running minimum or maximum along rows and columns: spans are doubled, so the work is its logarithm."""
    for axis in (1, 2):
        size, reach = x.shape[axis], min(window // 2, x.shape[axis] - 1)
        pad = [(0, 0)] * 4
        pad[axis] = (reach, reach)
        x = jnp.pad(x, pad, constant_values=outside)
        span, wanted = 1, 2 * reach + 1
        while span < wanted:
            step = min(span, wanted - span)
            length = x.shape[axis] - step
            first = jax.lax.slice_in_dim(x, 0, length, axis=axis)
            x = of(first, jax.lax.slice_in_dim(x, step, step + length, axis=axis))
            span += step
        assert x.shape[axis] == size
    return x
