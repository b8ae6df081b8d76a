"""Ground to put under a tile, in metres: canopy height is surface minus ground, so no label changes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

WAVELENGTHS = (20.0, 400.0)
"""Of the relief, metres: a lidar DTM has no form much smaller than half of the shortest."""

_WAVES = 64
_HURST = 0.8  # roughness of natural terrain: amplitude ~ wavelength^H, power ~ wavenumber^-(2 H + 2)
_CREST = 5.0  # m, how far from its line a crest is round
_ARC_RADII = (200.0, 2000.0)  # m


def pixel_centres(size: int, resolution: Float[Array, ""]) -> Float[Array, " size"]:
    """Distance of each row or column from the middle of the tile, metres."""
    return (jnp.arange(size) - (size - 1) / 2) * resolution


def tilted_plane(
    size: int, resolution: Float[Array, ""], slope: Float[Array, ""], direction: Float[Array, ""]
) -> Float[Array, "size size"]:
    """A plane through 0 in the middle of the tile.

    Args:
        size: side of the tile, pixels.
        resolution: side of a pixel, metres.
        slope: angle to the horizontal, degrees.
        direction: in which it rises, radians from the columns' towards the rows' axis.
    """
    along = pixel_centres(size, resolution)
    rise = jnp.sin(direction) * along[:, None] + jnp.cos(direction) * along
    return jnp.tan(jnp.radians(slope)) * rise


def fractal_relief(size: int, resolution: Float[Array, ""], key: PRNGKeyArray) -> Float[Array, "size size"]:
    """Random relief whose standard deviation over wide ground is 1 m; it has no period.

    A sum of plane waves of any direction, their lengths spread evenly in logarithm over `WAVELENGTHS`, the
    amplitude growing with the length to the power 0.8: the power-law spectrum of natural terrain (Turcotte,
    Fractals and Chaos in Geology and Geophysics, 1997). The root mean square of its slope is 0.05.

    Args:
        size: side of the tile, pixels.
        resolution: side of a pixel, metres.
        key: which relief.
    """
    shift, direction, phase = jax.random.uniform(key, (3, _WAVES))
    shortest, longest = WAVELENGTHS
    length = shortest * (longest / shortest) ** ((jnp.arange(_WAVES) + shift) / _WAVES)
    amplitude = length**_HURST
    amplitude *= jnp.sqrt(2 / jnp.sum(amplitude**2))
    along, turns = pixel_centres(size, resolution), 2 * jnp.pi * direction
    down = 2 * jnp.pi * ((jnp.sin(turns) / length)[:, None] * along + phase[:, None])
    right = 2 * jnp.pi * (jnp.cos(turns) / length)[:, None] * along
    # cos(down + right) of all waves at all pixels, as one product of matrices.
    rows = jnp.concatenate([jnp.cos(down), -jnp.sin(down)])
    columns = jnp.concatenate([jnp.cos(right), jnp.sin(right)]) * jnp.tile(amplitude, 2)[:, None]
    return jnp.matmul(rows.T, columns, precision=jax.lax.Precision.HIGHEST)


def ridge(
    size: int, resolution: Float[Array, ""], height: Float[Array, ""], key: PRNGKeyArray
) -> Float[Array, "size size"]:
    """A ridge, or for a negative height a valley: a fold along an arc through the tile, round at its crest.

    Its flanks fall off exponentially over a width drawn from one to four heights, 10 m at least, so that they
    are less than 45 degrees steep.

    Args:
        size: side of the tile, pixels.
        resolution: side of a pixel, metres.
        height: of the crest above the plain, metres.
        key: where it runs, how wide and how curved it is.
    """
    row, column, direction, bend, spread = jax.random.uniform(key, (5,))
    along, turn = pixel_centres(size, resolution), 2 * jnp.pi * direction
    smallest, largest = _ARC_RADII
    radius = smallest * (largest / smallest) ** bend
    crest = (2 * jnp.stack([row, column]) - 1) * along[-1]
    centre = crest + radius * jnp.stack([jnp.sin(turn), jnp.cos(turn)])
    distance = jnp.hypot(along[:, None] - centre[0], along - centre[1]) - radius
    width = jnp.maximum(jnp.abs(height), 10.0) * 4**spread
    return height * jnp.exp((_CREST - jnp.hypot(distance, _CREST)) / width)
