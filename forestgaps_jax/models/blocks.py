"""Parts of a U-Net."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.models.drop_path import drop_path
from forestgaps_jax.models.film import Modulation
from forestgaps_jax.models.initializers import he_normal
from forestgaps_jax.models.norm import Norm

conv = partial(nnx.Conv, kernel_init=he_normal)


class ConvBlock(nnx.Module):
    """Two 3x3 convolutions, each normalised and modulated; the second one is a residual branch.

    Having the channels of its input, the second convolution needs no projection to be added to it, and
    stochastic depth has a branch to drop.

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        norm: kind of `Norm`.
        drop_path_rate: chance that a sample skips the branch in training.
        rngs: the ``params`` stream initialises the weights.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        norm: Literal["batch", "group"],
        drop_path_rate: float,
        rngs: nnx.Rngs,
    ):
        self.drop_path_rate = drop_path_rate
        self.conv1 = conv(channels_in, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = Norm(channels, norm, rngs=rngs)
        self.conv2 = conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = Norm(channels, norm, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch height width channels_in"],
        known: Bool[Array, "batch height width 1"],
        steer1: Modulation | None,
        steer2: Modulation | None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Apply the block; ``steer1`` and ``steer2`` modulate the two convolutions, if given."""
        x = jax.nn.relu(self.norm1(self.conv1(x), known, steer1, train))
        branch = jax.nn.relu(self.norm2(self.conv2(x), known, steer2, train))
        return x + (drop_path(branch, self.drop_path_rate, rngs) if train else branch)


def halve(x: Array) -> Array:
    """Maximum of each 2x2 square of ``[batch, height, width, channels]``, booleans too."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def double(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels"]:
    """Bilinear doubling of height and width, the same as ``jax.image.resize``.

    Each new row lies a quarter of a pixel from an old one, so it is 3/4 of that and 1/4 of the next.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
        pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x
