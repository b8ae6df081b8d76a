"""What sensors and their processing do to a surface model; the canopy height, the truth, is not theirs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

_CORRELATED = 10.0  # m over which half of the noise's variance hangs together
_CROWN = 2.0  # m of canopy height from which a pixel can have a pit


def blur(dsm: Float[Array, "size size"], deviation: Float[Array, ""]) -> Float[Array, "size size"]:
    """Mean of the known pixels around each, weighted by a Gaussian; what is not known stays so.

    Args:
        dsm: surface, metres; NaN where not known.
        deviation: standard deviation of the Gaussian, pixels.
    """
    known = jnp.isfinite(dsm)
    middle = jnp.sum(jnp.where(known, dsm, 0.0)) / jnp.maximum(jnp.sum(known), 1)
    weights = _gaussian(dsm.shape[0], deviation)
    total = _both_ways(weights, jnp.where(known, dsm - middle, 0.0))
    weight = _both_ways(weights, known.astype(dsm.dtype))
    return jnp.where(known, middle + total / jnp.maximum(weight, 1.0), jnp.nan)


def grey_closing(dsm: Float[Array, "size size"], reach: Int[Array, ""]) -> Float[Array, "size size"]:
    """Fill what is narrower than a square window, as image matching does with narrow gaps.

    Windows are cut off at the edge of the tile; pixels that are not known are in none and stay so.

    Args:
        dsm: surface, metres; NaN where not known.
        reach: pixels from the middle of the window to its edge.
    """
    known = jnp.isfinite(dsm)
    highest = _spread(jnp.where(known, dsm, -jnp.inf), reach)
    return jnp.where(known, -_spread(-highest, reach), jnp.nan)


def add_pits(
    dsm: Float[Array, "size size"],
    chm: Float[Array, "size size"],
    share: Float[Array, ""],
    key: PRNGKeyArray,
) -> Float[Array, "size size"]:
    """Lower a share of the crown pixels to a random height between the ground and the crown.

    That is what a raster of few lidar returns has where a pulse went through the crown (Khosravipour et al.
    2014, Generating pit-free canopy height models from airborne lidar).

    Args:
        dsm: surface, metres; NaN where not known.
        chm: canopy height, metres; NaN where not known, which gets no pit.
        share: of the pixels above 2 m.
        key: which, and how deep.
    """
    # 16 bits each, of one draw.
    bits = jax.random.bits(key, dsm.shape)
    place, depth = (bits >> 16) / 2**16, (bits & 0xFFFF) / 2**16
    return jnp.where((chm > _CROWN) & (place < share), dsm - depth * chm, dsm)


def noise(size: int, resolution: Float[Array, ""], key: PRNGKeyArray) -> Float[Array, "size size"]:
    """Vertical noise of standard deviation 1: white, and correlated over 10 m, in equal parts of variance."""
    white, other = _nearly_normal(key, (2, size, size))
    return (white + correlated(other, _CORRELATED / resolution)) * jnp.sqrt(0.5)


def blobs(
    size: int, scale: Float[Array, ""], share: Float[Array, ""], key: PRNGKeyArray
) -> Bool[Array, "size size"]:
    """At most a share of a tile's pixels, in blobs: where smooth noise is lowest.

    Args:
        size: side of the tile, pixels.
        scale: correlation length of the noise, pixels.
        share: of the pixels, below 1; met to a few pixels.
        key: which pixels.
    """
    field = correlated(_nearly_normal(key, (size, size)), scale)
    return field < _level(field, share)


def _nearly_normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Mean 0 and deviation 1, from -3.45 to 3.45: the sum of four bytes, much faster than a true normal."""
    bits = jax.random.bits(key, shape)
    total = sum((bits >> shift) & 0xFF for shift in (0, 8, 16, 24))
    return (total.astype(jnp.float32) - 510.0) / jnp.sqrt((2**16 - 1) / 3)


def _level(field: Float[Array, "size size"], share: Float[Array, ""]) -> Float[Array, ""]:
    """Below which at most a share of the field lies; halving is much faster than the sort of a quantile."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = jnp.mean(field < middle) <= share
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, 20, halve, (jnp.min(field), jnp.max(field)))[0]


def correlated(white: Float[Array, "size size"], length: Float[Array, ""]) -> Float[Array, "size size"]:
    """White noise made smooth: its standard deviation stays at every pixel, its correlation is Gaussian.

    Args:
        white: independent values.
        length: pixels apart at which the correlation is exp(-1/2).
    """
    weights = _gaussian(white.shape[0], length / jnp.sqrt(2.0))
    weights /= jnp.sqrt(jnp.sum(weights**2, axis=1, keepdims=True))
    return _both_ways(weights, white)


def _gaussian(size: int, deviation: Float[Array, ""]) -> Float[Array, "size size"]:
    apart = jnp.arange(size)[:, None] - jnp.arange(size)
    return jnp.exp(-0.5 * (apart / jnp.maximum(deviation, 1e-3)) ** 2)


def _both_ways(weights: Float[Array, "size size"], x: Float[Array, "size size"]) -> Float[Array, "size size"]:
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(jnp.matmul(weights, x, precision=highest), weights.T, precision=highest)


def _spread(x: Float[Array, "size size"], reach: Int[Array, ""]) -> Float[Array, "size size"]:
    """The highest value within ``reach`` rows and columns."""

    def down(x: Array) -> Array:
        return jax.lax.fori_loop(0, jnp.minimum(reach, x.shape[0]), lambda _, x: _step(x), x)

    return down(down(x).T).T


def _step(x: Float[Array, "size size"]) -> Float[Array, "size size"]:
    padded = jnp.pad(x, ((1, 1), (0, 0)), constant_values=-jnp.inf)
    return jnp.maximum(jnp.maximum(padded[:-2], padded[2:]), x)
