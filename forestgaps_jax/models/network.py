"""What all networks share: checks and scaling of the input, steering by the threshold, the way of a block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.layers.conv import Layers
from forestgaps_jax.layers.drop_path import Rate
from forestgaps_jax.layers.norm import Modulation
from forestgaps_jax.layers.remat import saving_memory
from forestgaps_jax.models.blocks import ConvBlock
from forestgaps_jax.models.film import FiLM, ThresholdEmbedding
from forestgaps_jax.models.height import normalize_height
from forestgaps_jax.models.surface import surface_channels
from forestgaps_jax.settings import Settings

OPENING_WINDOWS = Settings().opening_windows
"""Sides (px) of the grey openings that networks see by default."""

EMBEDDING = 64
"""Width of the threshold's embedding."""


@dataclass(frozen=True)
class Passage:
    """One forward pass: how its blocks are called.

    Args:
        rngs: streams ``dropout`` and ``drop_path``, or None.
        train: use batch statistics and drop at random.
        drop_path_rate: chance to drop the deepest branch.
        steer: one modulation a normalised layer, in order.
        remat: compute a block's features again in the backward pass.
    """

    rngs: nnx.Rngs | None
    train: bool
    drop_path_rate: Rate
    steer: Iterator[Modulation | None]
    remat: bool

    def through(
        self,
        block: ConvBlock,
        x: Float[Array, "batch height width channels_in"],
        known: Bool[Array, "batch height width 1"],
    ) -> Float[Array, "batch height width channels"]:
        """Apply a block."""
        steer = (next(self.steer), next(self.steer))

        def apply(block: ConvBlock, x: Array, known: Array, steer: tuple, rngs: nnx.Rngs | None) -> Array:
            return block(x, known, steer, rngs, self.train, self.drop_path_rate)

        return saving_memory(apply, everything=self.remat)(block, x, known, steer, self.rngs)


class Network(nnx.Module):
    """Base of the networks.

    Attributes:
        several_thresholds: it takes ``[batch, thresholds]`` too, and gives a channel for each, in one pass.
        stride: height and width of a tile must be multiples of it.
        embed: embedding of the threshold; None for a network that ignores it.
        film: steering by the embedding; None likewise.
    """

    several_thresholds = False

    def __init__(
        self,
        layers: Layers,
        *,
        stride: int,
        steered: Sequence[int] | None,
        dropout: float,
        drop_path_rate: float,
        height_scale: float,
        detrend: bool,
        opening_windows: Sequence[int],
        remat: bool,
    ):
        if not 0.0 <= drop_path_rate <= 1.0:
            raise ValueError(f"drop_path_rate = {drop_path_rate}: must be from 0 to 1")
        self.stride, self.height_scale, self.remat = stride, height_scale, remat
        self.detrend, self.opening_windows = detrend, tuple(opening_windows)
        self.norm, self.batch_size = layers.norm, layers.batch_size
        self.precision, self.spectral_norm = layers.precision, layers.spectral_norm
        self.batch_norm_parts = layers.batch_norm_parts
        self.drop_path_rate = drop_path_rate
        self.dropout = nnx.Dropout(dropout)
        self.embed = None if steered is None else ThresholdEmbedding(EMBEDDING, rngs=layers.rngs)
        self.film = None if steered is None else FiLM(EMBEDDING, steered, rngs=layers.rngs)

    def begin(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | None,
        rngs: nnx.Rngs | None,
        train: bool,
        drop_path_rate: Rate | None,
        resolution: Float[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch height width channels"], Bool[Array, "batch height width 1"], Passage]:
        """The scaled tile and its openings, where it is known, and how to go through the blocks.

        Raises:
            ValueError: the tile or the threshold has not the shape, or the threshold is missing.
        """
        threshold = self.check(dsm, threshold)
        x, threshold, known = normalize_height(dsm, threshold, self.height_scale)
        x = surface_channels(x, known, self.detrend, self.opening_windows)
        return x, known, self.passage(threshold, resolution, rngs, train, drop_path_rate)

    def passage(
        self,
        threshold: Float[Array, " batch"],
        resolution: Float[Array, " batch"] | None,
        rngs: nnx.Rngs | None,
        train: bool,
        drop_path_rate: Rate | None,
    ) -> Passage:
        """How to go through the blocks, steered by a scaled threshold and the side of a pixel, metres."""
        resolution = jnp.ones_like(threshold) if resolution is None else resolution
        steer = (
            iter(self.film(self.embed(threshold, resolution))) if self.film and self.embed else repeat(None)
        )
        rate = self.drop_path_rate if drop_path_rate is None else drop_path_rate
        return Passage(rngs, train, rate, steer, self.remat)

    def check(self, dsm: Array, threshold: Array | None) -> Array:
        """Refuse what is no tile, or thresholds that do not fit; what steers each sample, 0 for nothing.

        Raises:
            ValueError: the tile or the threshold has not the shape, or the threshold is missing.
        """
        if dsm.ndim != 4 or dsm.shape[-1] != 1:
            hint = "; transpose it by (0, 2, 3, 1)" if dsm.ndim == 4 and dsm.shape[1] == 1 else ""
            raise ValueError(f"dsm has shape {dsm.shape}: must be [batch, height, width, 1]{hint}")
        if dsm.shape[1] % self.stride or dsm.shape[2] % self.stride:
            raise ValueError(
                f"tile of {dsm.shape[1]} x {dsm.shape[2]} px: both must be multiples of {self.stride}, "
                "the network's stride; pad the tile with NaN or choose another depth"
            )
        batch, several = dsm.shape[0], self.several_thresholds
        if threshold is None and (self.embed is None or several):
            return jnp.zeros(batch)
        fits = threshold is not None and threshold.shape == (batch,)
        if threshold is not None and several and threshold.ndim == 2:
            fits = threshold.shape[0] == batch and threshold.shape[1] > 0
        if threshold is None or not fits:
            given = None if threshold is None else threshold.shape
            also = f" or ({batch}, thresholds), one or several heights" if several else ", one height"
            raise ValueError(f"threshold has shape {given}: must be ({batch},){also} a sample")
        return jnp.zeros(batch) if several else threshold
