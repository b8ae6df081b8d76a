"""Changes of resolution by two."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def halve(x: Array) -> Array:
    """Maximum of each 2x2 square of ``[batch, height, width, channels]``, booleans too."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def double(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels"]:
    """Bilinear doubling of height and width, the same as ``jax.image.resize``.

    Each new row lies a quarter of a pixel from an old one, so it is 3/4 of that and 1/4 of the next. Each
    axis is computed in float32.
    """
    dtype = x.dtype
    for axis in (1, 2):
        x, size = x.astype(jnp.float32), x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
        pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :]).astype(dtype)
    return x
