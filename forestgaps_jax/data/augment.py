"""Changes to a training tile that keep its labels true."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


def turn(
    tile: Shaped[Array, "size size channels"], symmetry: Int[Array, ""]
) -> Shaped[Array, "size size channels"]:
    """One of the 8 turns and mirrorings of a square tile, numbered 0 (none) to 7.

    Bit 0 swaps rows and columns, bit 1 reverses the rows, bit 2 the columns.
    """
    tile = jnp.where(symmetry & 1, tile.swapaxes(0, 1), tile)
    tile = jnp.where(symmetry & 2, tile[::-1], tile)
    return jnp.where(symmetry & 4, tile[:, ::-1], tile)


def turn_at_random(
    tiles: Shaped[Array, "batch size size channels"], key: Array
) -> Shaped[Array, "batch size size channels"]:
    """Turn each tile by a symmetry of its own; all channels of a tile turn together."""
    return jax.vmap(turn)(tiles, jax.random.randint(key, tiles.shape[:1], 0, 8))
