"""A U-Net that finds the ground below the canopy."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.layers.drop_path import Rate
from forestgaps_jax.models.canopy_height import HeightDistributionUNet, mix
from forestgaps_jax.models.cells import ground_candidates, split_into_cells, windows_in_cells
from forestgaps_jax.models.height import normalize_height
from forestgaps_jax.models.resize import double
from forestgaps_jax.models.surface import remove_plane


class GroundUNet(HeightDistributionUNet):
    """A U-Net that predicts the ground; the canopy is what the surface is above it, and gap is what is low.

    Ground is smooth where canopy is not, so it is predicted in cells of 4 x 4 pixels and doubled bilinearly
    to pixels: a sixteenth of the work of a network of pixels, and every crown's outline comes from the
    surface itself. In each cell it is a mixture, chosen by the network, of `ground_candidates`, plus a
    correction. So the network starts as good as grey openings, which need no training, and learns where they
    fail.

    Canopy height is a logistic distribution around surface minus ground (see `HeightDistributionUNet`); the
    openings are made of whole cells.

    >>> model = GroundUNet(rngs=nnx.Rngs(0), features=4, depth=1)
    >>> dsm = jnp.zeros((1, 8, 8, 1))
    >>> model(dsm, jnp.array([[5.0, 10.0]])).shape
    (1, 8, 8, 2)
    """

    cell = 4
    registered = "unet_ground"

    @property
    def windows(self) -> tuple[int, ...]:
        """Sides of the openings, cells."""
        return windows_in_cells(self.opening_windows, self.cell)

    @property
    def candidates(self) -> int:
        """How many grounds are mixed."""
        return 1 + 2 * len(self.windows)

    @property
    def inputs(self) -> int:
        """Whether a cell is known, its lowest surface, that above the other candidates, and its pixels."""
        return 1 + self.candidates + self.cell**2

    @property
    def outputs(self) -> int:
        """Shares of the candidates, correction and scale."""
        return self.candidates + 2

    def distribution(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"],
        rngs: nnx.Rngs | None,
        train: bool,
        drop_path_rate: Rate | None,
        resolution: Float[Array, " batch"] | None,
    ) -> tuple[Float[Array, "batch height width 1"], Float[Array, "batch height width 1"]]:
        """Median and scale of each pixel: the ground of its cells, taken from its surface."""
        heights, threshold, known = normalize_height(dsm, threshold, self.height_scale)
        if self.detrend:
            heights = remove_plane(heights, known)
        cells = split_into_cells(heights, known, self.cell)
        grounds = ground_candidates(cells.lowest, cells.known, self.windows)
        above = cells.lowest - grounds[..., 1:]
        seen = jnp.concatenate([cells.known.astype(above.dtype), cells.lowest, above, cells.detail], axis=-1)
        passage = self.passage(threshold, resolution, rngs, train, drop_path_rate)
        mixed, correction, scale = mix(self.decode(seen, cells.known, passage), grounds)
        ground, scale = self._to_pixels(mixed + correction, scale, cells.known)
        return self.height_scale * (heights - ground), scale

    def _to_pixels(self, ground: Array, scale: Array, known: Array) -> tuple[Array, Array]:
        """Ground and scale of each pixel, from those of the known cells around it."""
        pixels = jnp.concatenate([ground, scale, jnp.ones_like(ground)], axis=-1) * known
        for _ in range(self.cell.bit_length() - 1):
            pixels = double(pixels)
        # At a known pixel its own cell has a weight; where nothing is known there is nothing to divide.
        pixels = pixels[..., :2] / jnp.where(pixels[..., 2:] > 0, pixels[..., 2:], 1.0)
        return pixels[..., :1], pixels[..., 1:]
