"""Blocks of two convolutions with a residual branch."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.layers.conv import Layers
from forestgaps_jax.layers.drop_path import DropPath, Rate
from forestgaps_jax.layers.norm import Modulation
from forestgaps_jax.models.attention import CBAM


class ConvBlock(nnx.Module):
    """Two 3x3 convolutions, each normalised and modulated; the second one is a residual branch.

    Having the channels of its input, the second convolution needs no projection to be added to it, and
    stochastic depth has a branch to drop.

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        layers: makes the layers.
        share: of the deepest block's rate of stochastic depth.
        cbam: weigh the branch by `CBAM`.
        entry: the input are heights: see them in float32, since bfloat16 would round them to decimetres.
        dilation: pixels between the kernels' taps.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        layers: Layers,
        *,
        share: float = 1.0,
        cbam: bool = False,
        entry: bool = False,
        dilation: int = 1,
    ):
        self.conv1 = layers.conv(channels_in, channels, 3, dilation=dilation, exact=entry)
        self.norm1 = layers.normalize(channels)
        self.conv2 = layers.conv(channels, channels, 3, dilation=dilation)
        self.norm2 = layers.normalize(channels)
        self.cbam = CBAM(channels, layers) if cbam else None
        self.drop_path = DropPath(share)

    def __call__(
        self,
        x: Float[Array, "batch height width channels_in"],
        known: Bool[Array, "batch height width 1"],
        steer: Sequence[Modulation | None] = (None, None),
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        drop_path_rate: Rate = 0.0,
    ) -> Float[Array, "batch height width channels"]:
        """Apply the block; ``steer`` modulates the two convolutions."""
        x = jax.nn.relu(self.norm1(self.conv1(x, train), known, steer[0], train))
        branch = jax.nn.relu(self.norm2(self.conv2(x, train), known, steer[1], train))
        if self.cbam is not None:
            branch = self.cbam(branch, known, train)
        return x + self.drop_path(branch, drop_path_rate, rngs, train)


class ResidualBlock(ConvBlock):
    """A basic block: both convolutions are the residual branch, which a projection is added to.

    The projection is a normalised 1x1 convolution where channels change, else the input itself.

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        layers: makes the layers.
        entry: as in `ConvBlock`.
        options: further arguments of `ConvBlock`.

    Source: He et al. 2016, Deep Residual Learning, arXiv:1512.03385.
    """

    def __init__(
        self, channels_in: int, channels: int, layers: Layers, *, entry: bool = False, **options: Any
    ):
        super().__init__(channels_in, channels, layers, entry=entry, **options)
        project = channels_in != channels
        self.project = layers.conv(channels_in, channels, 1, exact=entry) if project else None
        self.norm = layers.normalize(channels) if project else None

    def __call__(
        self,
        x: Float[Array, "batch height width channels_in"],
        known: Bool[Array, "batch height width 1"],
        steer: Sequence[Modulation | None] = (None, None),
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        drop_path_rate: Rate = 0.0,
    ) -> Float[Array, "batch height width channels"]:
        """Apply the block; ``steer`` modulates the two convolutions."""
        branch = jax.nn.relu(self.norm1(self.conv1(x, train), known, steer[0], train))
        branch = self.norm2(self.conv2(branch, train), known, steer[1], train)
        if self.cbam is not None:
            branch = self.cbam(branch, known, train)
        if self.project is not None and self.norm is not None:
            x = self.norm(self.project(x, train), known, None, train)
        return jax.nn.relu(x + self.drop_path(branch, drop_path_rate, rngs, train))
