"""Attention: which features matter, where."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.layers.conv import Layers
from forestgaps_jax.layers.initializers import he_normal
from forestgaps_jax.models.resize import double

REDUCTION = 16
"""How much narrower the channel attention's perceptron is than the features."""


class AttentionGate(nnx.Module):
    """Weighs a skip connection, place by place, by what the level below makes of it.

    Weights are found on the coarse grid and doubled bilinearly, as in the paper.

    Args:
        channels: of the skip connection.
        channels_below: of the features of the level below.
        layers: makes the layers.

    Source: Oktay et al. 2018, Attention U-Net, arXiv:1804.03999.
    """

    def __init__(self, channels: int, channels_below: int, layers: Layers):
        between = max(channels // 2, 1)
        self.skip = layers.conv(channels, between, 2, stride=2)
        self.below = layers.conv(channels_below, between, 1, use_bias=True)
        self.weigh = layers.conv(between, 1, 1, use_bias=True)

    def __call__(
        self,
        skip: Float[Array, "batch height width channels"],
        below: Float[Array, "batch half_height half_width channels_below"],
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """The skip connection times weights from 0 to 1."""
        agreement = jax.nn.relu(self.skip(skip, train) + self.below(below, train))
        return skip * double(jax.nn.sigmoid(self.weigh(agreement, train)))


class CBAM(nnx.Module):
    """Convolutional block attention: weighs channels, then places. Unknown pixels weigh in on neither.

    Args:
        channels: of the features.
        layers: makes the layers.

    Source: Woo et al. 2018, CBAM: Convolutional Block Attention Module, arXiv:1807.06521.
    """

    def __init__(self, channels: int, layers: Layers):
        width = max(channels // REDUCTION, min(channels, 4))
        self.hidden = nnx.Linear(channels, width, kernel_init=he_normal, rngs=layers.rngs)
        self.out = nnx.Linear(width, channels, kernel_init=he_normal, rngs=layers.rngs)
        self.place = layers.conv(2, 1, 7)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        known: Bool[Array, "batch height width 1"],
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """The features times weights from 0 to 1; 0 where not known."""
        x = jnp.where(known, x, 0)
        pooled = jnp.stack([mean_of_known(x, known), _max_of_known(x, known)])
        channels = jax.nn.sigmoid(self.out(jax.nn.relu(self.hidden(pooled))).sum(0))
        x = x * channels[:, None, None, :].astype(x.dtype)
        over_channels = jnp.stack([x.mean(-1), x.max(-1)], axis=-1)
        return x * jax.nn.sigmoid(self.place(over_channels, train)).astype(x.dtype)


def mean_of_known(
    x: Float[Array, "batch height width channels"], known: Bool[Array, "batch height width 1"]
) -> Float[Array, "batch channels"]:
    """Mean of each channel over known pixels, float32; 0 where there is none.

    >>> x, known = jnp.array([1.0, 3.0, 99.0]), jnp.array([True, True, False])
    >>> mean_of_known(x.reshape(1, 1, 3, 1), known.reshape(1, 1, 3, 1)).item()
    2.0
    """
    total = jnp.sum(x, axis=(1, 2), where=known, dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(known, axis=(1, 2)), 1)


def _max_of_known(x: Array, known: Array) -> Array:
    highest = jnp.max(x.astype(jnp.float32), axis=(1, 2), where=known, initial=-jnp.inf)
    return jnp.where(known.any(axis=(1, 2)), highest, 0.0)
