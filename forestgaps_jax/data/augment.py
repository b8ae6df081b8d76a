"""Changes to a training tile that keep its labels true."""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from forestgaps_jax.config import Config
from forestgaps_jax.data import sensor, terrain
from forestgaps_jax.data.zoom import zoom

_CHANCE = 0.5  # that a zoom or an effect of the sensor acts on a tile
_BLOBS = (2.0, 8.0)  # m, scale of what gets lost

_Draws = dict[str, Array]
"""By the name of the setting."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to training tiles, each in its own way; the default is nothing.

    A tile is turned, zoomed into, its canopy scaled, put on other ground, and seen by a worse sensor, in this
    order. Turns and zooms move surface and canopy height together; the scale multiplies the canopy of
    both; new ground raises the surface alone, and so does no harm to ``canopy height = surface - ground``. A
    sensor changes the surface alone: the canopy height stays the truth. Zoom and each effect of the sensor
    act on a random half of the tiles. A draw depends on no other setting than its own.

    Attributes:
        turns: turn and mirror (the 8 symmetries of the square).
        tilt: largest slope of an added plane, degrees; angles are drawn evenly from 0.
        relief: largest standard deviation of added relief, metres.
        ridges: largest height of an added ridge or valley, metres.
        height: factors on the canopy, the smallest and the largest; drawn evenly in logarithm.
        resolution: smallest new pixel, share of the site's; drawn evenly in logarithm.
        smoothing: largest window of the closing, metres.
        blur: largest standard deviation of the blur, metres.
        pits: largest share of crown pixels with a pit.
        noise: largest standard deviation of the noise, metres.
        missing: largest share of the surface's pixels that get lost.

    Raises:
        ValueError: the first of ``height`` is above the second.
    """

    turns: bool = False
    tilt: float = 0.0
    relief: float = 0.0
    ridges: float = 0.0
    height: tuple[float, float] = (1.0, 1.0)
    resolution: float = 1.0
    smoothing: float = 0.0
    blur: float = 0.0
    pits: float = 0.0
    noise: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        if self.height[0] > self.height[1]:
            raise ValueError(f"augment_height = {self.height}: the first must not be above the second")

    @staticmethod
    def from_config(config: Config) -> "Augmentation | None":
        """The augmentation that ``config`` asks for; None for nothing.

        >>> Augmentation.from_config(Config(augment_tilt=30.0)).tilt
        30.0
        """
        names = [field.name for field in fields(Augmentation) if field.name != "turns"]
        settings = {name: getattr(config, f"augment_{name}") for name in names}
        asked = Augmentation(turns=config.augment, **settings)
        return None if asked == Augmentation() else asked

    def __call__(
        self,
        tiles: Float[Array, "batch size size 2"],
        resolution: Float[Array, " batch"],
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "batch size size 2"], Float[Array, " batch"]]:
        """Augment DSM and CHM (m) of tiles whose pixels have these sides (m); pure, traceable.

        Returns:
            The tiles, and the sides of their pixels, which a zoom makes smaller.
        """
        if self.turns:
            tiles = turn_at_random(tiles, key)
        # Far from 0, where fold_in gives the keys that the turns draw from.
        keys = jax.random.split(jax.random.fold_in(key, 2**31), len(tiles))
        return jax.vmap(self._augment)(tiles, resolution, keys)

    def _augment(self, tile: Array, resolution: Array, key: Array) -> tuple[Array, Array]:
        own_key, draw_key = jax.random.split(key)
        names = [field.name for field in fields(self)]
        own = dict(zip(names, jax.random.split(own_key, len(names)), strict=True))
        draws = dict(zip(names, jax.random.uniform(draw_key, (len(names), 4)), strict=True))
        if self.resolution != 1.0:
            tile, resolution = self._zoom(tile, resolution, draws["resolution"])
        dsm, chm = tile[..., 0], tile[..., 1]
        if self.height != (1.0, 1.0):
            factor = _between(*self.height, draws["height"][0])
            dsm, chm = dsm + (factor - 1) * chm, factor * chm
        dsm = self._sense(self._raise(dsm, resolution, draws, own), chm, resolution, draws, own)
        return jnp.stack([dsm, chm], axis=-1), resolution

    def _zoom(self, tile: Array, resolution: Array, draw: Array) -> tuple[Array, Array]:
        factor, act = _between(self.resolution, 1.0, draw[0]), draw[1] < _CHANCE
        zoomed = zoom(tile, (tile.shape[0] - 1) * (1 - factor) * draw[2:], factor)
        return jnp.where(act, zoomed, tile), jnp.where(act, factor * resolution, resolution)

    def _raise(self, dsm: Array, resolution: Array, draws: _Draws, own: _Draws) -> Array:
        """Put other ground under the surface."""
        size = dsm.shape[0]
        if self.tilt:
            slope, direction = self.tilt * draws["tilt"][0], 2 * jnp.pi * draws["tilt"][1]
            dsm += terrain.tilted_plane(size, resolution, slope, direction)
        if self.relief:
            deviation = self.relief * draws["relief"][0]
            dsm += deviation * terrain.fractal_relief(size, resolution, own["relief"])
        if self.ridges:
            height = self.ridges * (2 * draws["ridges"][0] - 1)
            dsm += terrain.ridge(size, resolution, height, own["ridges"])
        return dsm

    def _sense(self, dsm: Array, chm: Array, resolution: Array, draws: _Draws, own: _Draws) -> Array:
        """See the surface as a worse sensor does."""
        size, acts = dsm.shape[0], {name: draw[0] < _CHANCE for name, draw in draws.items()}
        strength = {name: draw[1] for name, draw in draws.items()}
        if self.smoothing:
            window = acts["smoothing"] * self.smoothing * strength["smoothing"]
            closed = sensor.grey_closing(dsm, (window / (2 * resolution)).astype(jnp.int32))
            dsm = jnp.where(acts["smoothing"], dsm + draws["smoothing"][2] * (closed - dsm), dsm)
        if self.blur:
            blurred = sensor.blur(dsm, self.blur * strength["blur"] / resolution)
            dsm = jnp.where(acts["blur"], blurred, dsm)
        if self.pits:
            dsm = sensor.add_pits(dsm, chm, acts["pits"] * self.pits * strength["pits"], own["pits"])
        if self.noise:
            noise = self.noise * strength["noise"] * sensor.noise(size, resolution, own["noise"])
            dsm = jnp.where(acts["noise"], dsm + noise, dsm)
        if self.missing:
            scale = _between(*_BLOBS, draws["missing"][2]) / resolution
            lost = sensor.blobs(size, scale, self.missing * strength["missing"], own["missing"])
            dsm = jnp.where(acts["missing"] & lost, jnp.nan, dsm)
        return dsm


def _between(low: float, high: float, draw: Array) -> Float[Array, ""]:
    """From ``low`` to ``high``, even in logarithm, by a draw from 0 to 1."""
    return low * (high / low) ** draw


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
