"""A U-Net that finds the ground below the canopy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.layers.drop_path import Rate
from forestgaps_jax.models.canopy_height import logistic_logits
from forestgaps_jax.models.cells import ground_candidates, split_into_cells, windows_in_cells
from forestgaps_jax.models.height import normalize_height
from forestgaps_jax.models.network import OPENING_WINDOWS
from forestgaps_jax.models.resize import double
from forestgaps_jax.models.surface import remove_plane
from forestgaps_jax.models.unet import UNet


class GroundUNet(UNet):
    """A U-Net that predicts the ground; the canopy is what the surface is above it, and gap is what is low.

    Ground is smooth where canopy is not, so it is predicted in cells of 4 x 4 pixels and doubled bilinearly
    to pixels: a sixteenth of the work of a network of pixels, and every crown's outline comes from the
    surface itself. In each cell it is a mixture, chosen by the network, of `ground_candidates`, plus a
    correction. So the network starts as good as grey openings, which need no training, and learns where they
    fail.

    Canopy height is a logistic distribution around surface minus ground, as in `DistributionUNet`: the
    logit at a threshold ``t`` is ``(t - median) / scale``, which rises with ``t``; one pass serves all.

    Args:
        opening_windows: sides (px, odd) of the openings, one at least; they are made of whole cells.
        rngs: the ``params`` stream initialises the weights.
        options: arguments of `UNet` but ``film``.

    Raises:
        ValueError: there is no window.

    >>> model = GroundUNet(rngs=nnx.Rngs(0), features=4, depth=1)
    >>> dsm = jnp.zeros((1, 8, 8, 1))
    >>> model(dsm, jnp.array([[5.0, 10.0]])).shape
    (1, 8, 8, 2)
    """

    cell = 4
    several_thresholds = True

    def __init__(self, *, opening_windows: Sequence[int] = OPENING_WINDOWS, rngs: nnx.Rngs, **options: Any):
        if not opening_windows:
            raise ValueError("opening_windows is empty: unet_ground mixes openings, give one or more")
        super().__init__(film=True, opening_windows=opening_windows, rngs=rngs, **options)
        # It starts near an even mixture of the candidates.
        self.head.kernel[...] *= 0.1

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

    def __call__(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | Float[Array, "batch thresholds"] | None = None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        drop_path_rate: Rate | None = None,
        resolution: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width thresholds"]:
        """Logits that the canopy is lower than the thresholds; without one, the median height, metres.

        Arguments as in `UNet`, but that a sample may have several thresholds.
        """
        unsteered = self.check(dsm, threshold)
        heights, unsteered, known = normalize_height(dsm, unsteered, self.height_scale)
        if self.detrend:
            heights = remove_plane(heights, known)
        cells = split_into_cells(heights, known, self.cell)
        grounds = ground_candidates(cells.lowest, cells.known, self.windows)
        above = cells.lowest - grounds[..., 1:]
        seen = jnp.concatenate([cells.known.astype(above.dtype), cells.lowest, above, cells.detail], axis=-1)
        passage = self.passage(unsteered, resolution, rngs, train, drop_path_rate)
        ground, scale = self._mix(self.decode(seen, cells.known, passage), grounds, cells.known)
        median = self.height_scale * (heights - ground)
        return median if threshold is None else logistic_logits(threshold, median, scale)

    def _mix(self, outputs: Array, grounds: Array, known: Array) -> tuple[Array, Array]:
        """Ground and scale of each pixel, from those of the known cells around it."""
        shares, rest = outputs[..., : self.candidates], outputs[..., self.candidates :]
        # The factor makes shares as quick to learn as the correction.
        mixed = jnp.sum(jax.nn.softmax(3.0 * shares) * grounds, axis=-1, keepdims=True)
        weight = known.astype(mixed.dtype)
        pixels = (
            jnp.concatenate([mixed + rest[..., :1], rest[..., 1:], jnp.ones_like(mixed)], axis=-1) * weight
        )
        for _ in range(self.cell.bit_length() - 1):
            pixels = double(pixels)
        # At a known pixel its own cell has a weight; where nothing is known there is nothing to divide.
        pixels = pixels[..., :2] / jnp.where(pixels[..., 2:] > 0, pixels[..., 2:], 1.0)
        return pixels[..., :1], pixels[..., 1:]
