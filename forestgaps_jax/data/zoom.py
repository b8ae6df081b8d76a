"""A tile at a finer pixel than that of its site."""

import jax.numpy as jnp
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
    rows, columns = first[:, None] + factor * jnp.arange(tile.shape[0])
    # Whole rows, then whole columns: accelerators are slow at fetching pixels one by one.
    return _rows_at(_rows_at(tile, rows).swapaxes(0, 1), columns).swapaxes(0, 1)


def _rows_at(
    tile: Float[Array, "size width channels"], centres: Float[Array, " size"]
) -> Float[Array, "size width channels"]:
    last = tile.shape[0] - 1
    centres = jnp.clip(centres, 0, last)
    above = centres.astype(jnp.int32)
    share = (centres - above)[:, None, None]
    return (1 - share) * tile[above] + share * tile[jnp.minimum(above + 1, last)]
