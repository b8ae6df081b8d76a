"""A tile at a finer pixel than that of its site."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_UNKNOWN = 1e30
"""Stands for a height that is not known: of any share of it more than `_HIGHEST` is left."""

_HIGHEST = 1e9


def zoom(
    tile: Float[Array, "size size channels"], first: Float[Array, " 2"], factor: Float[Array, ""]
) -> Float[Array, "size size channels"]:
    """The same number of pixels from a window of the tile, bilinear between the pixels' centres.

    A pixel is known where the four around it are; nothing outside the tile is read.

    Args:
        tile: heights, metres; NaN where not known.
        first: row and column of the first new pixel's centre, from 0 to (size - 1) (1 - factor).
        factor: side of the new pixels in old ones, 0 to 1.
    """
    size, highest = tile.shape[0], jax.lax.Precision.HIGHEST
    rows, columns = (_weights(start + factor * jnp.arange(size), size) for start in first)
    layers = jnp.nan_to_num(jnp.moveaxis(tile, -1, 0), nan=_UNKNOWN)
    # Products of matrices are much faster than to fetch four pixels for each.
    zoomed = jnp.matmul(jnp.matmul(rows, layers, precision=highest), columns.T, precision=highest)
    return jnp.moveaxis(jnp.where(zoomed > _HIGHEST, jnp.nan, zoomed), 0, -1)


def _weights(place: Float[Array, " size"], size: int) -> Float[Array, "size size"]:
    """Of the pixels around each place, which is in the tile but for rounding."""
    place = jnp.clip(place, 0, size - 1)
    return jnp.maximum(1.0 - jnp.abs(place[:, None] - jnp.arange(size)), 0.0)
