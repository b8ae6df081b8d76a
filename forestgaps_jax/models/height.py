"""Heights in metres as the network sees them: the one place where inputs are scaled."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def normalize_height(
    dsm: Float[Array, "batch height width 1"],
    threshold: Float[Array, " batch"],
    scale: float = 10.0,
) -> tuple[Float[Array, "batch height width 1"], Float[Array, " batch"], Bool[Array, "batch height width 1"]]:
    """Take each tile's mean height off, and count heights and threshold in the same unit.

    The mean is over the pixels where the surface is known, so neither the elevation of a site nor what
    stands in its no-data pixels reaches the network. Training, evaluation and inference all pass here.

    Args:
        dsm: surface height, metres; NaN where not known.
        threshold: canopy height below which a pixel is gap, metres.
        scale: metres that count as 1.

    Returns:
        The scaled tile (0 where not known), the scaled thresholds, and where the surface is known.

    >>> dsm = jnp.array([310.0, 330.0, jnp.nan, 320.0]).reshape(1, 2, 2, 1)
    >>> tile, threshold, known = normalize_height(dsm, jnp.array([5.0]))
    >>> tile.ravel().tolist(), threshold.tolist()
    ([-1.0, 1.0, 0.0, 0.0], [0.5])
    """
    known = jnp.isfinite(dsm)
    # Taking the highest off first keeps float32 exact to the millimetre on high mountains.
    highest = jnp.max(dsm, axis=(1, 2, 3), keepdims=True, where=known, initial=-jnp.inf)
    heights = jnp.where(known, dsm - highest, 0.0)
    pixels = jnp.maximum(jnp.sum(known, axis=(1, 2, 3), keepdims=True), 1)
    mean = jnp.sum(heights, axis=(1, 2, 3), keepdims=True) / pixels
    return jnp.where(known, (heights - mean) / scale, 0.0), threshold / scale, known
