"""A tile at a finer pixel than that of its site."""

import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float


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
    size = tile.shape[0]
    rows, columns = first[:, None] + factor * jnp.arange(size)
    grid = jnp.meshgrid(rows, columns, indexing="ij")
    layers = [map_coordinates(layer, grid, order=1, mode="nearest") for layer in jnp.moveaxis(tile, -1, 0)]
    return jnp.stack(layers, axis=-1)
