"""Feature-wise linear modulation: how the height threshold steers the network."""

from collections.abc import Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.layers.initializers import he_normal
from forestgaps_jax.layers.norm import Modulation


class ThresholdEmbedding(nnx.Module):
    """A small perceptron from scaled threshold and pixel size ``[batch]`` to a vector ``[batch, width]``."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        # Thresholds are heights: the factors of a TPU's default would be decimetres off.
        self.hidden = nnx.Linear(2, width, kernel_init=he_normal, precision="highest", rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=he_normal, rngs=rngs)

    def __call__(
        self, threshold: Float[Array, " batch"], resolution: Float[Array, " batch"]
    ) -> Float[Array, "batch width"]:
        """Embed thresholds that `normalize_height` has scaled, and pixel sizes in metres."""
        told = jnp.stack([threshold, jnp.log2(resolution)], axis=-1)
        return jax.nn.gelu(self.out(jax.nn.gelu(self.hidden(told))))


class FiLM(nnx.Module):
    """Scale and shift of the channels of several layers, read off the threshold's embedding.

    One projection serves all layers: it compiles faster than one for each, and is one kernel on a GPU.
    It starts at zero and the scale is ``1 + gamma``, so at the start features pass unchanged.

    Args:
        width: of the embedding.
        channels: of each layer to steer.
        rngs: the ``params`` stream initialises the weights.

    Source: Perez et al. 2018, FiLM: Visual Reasoning with a General Conditioning Layer, arXiv:1709.07871.
    """

    def __init__(self, width: int, channels: Sequence[int], *, rngs: nnx.Rngs):
        self.ends = tuple(accumulate(channels))
        self.project = nnx.Linear(width, 2 * self.ends[-1], kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, embedding: Float[Array, "batch width"]) -> list[Modulation]:
        """The factor and the summand for each layer's features ``[batch, height, width, channels]``."""
        gamma, beta = jnp.split(self.project(embedding)[:, None, None, :], 2, axis=-1)
        gains, shifts = (jnp.split(part, self.ends[:-1], axis=-1) for part in (1.0 + gamma, beta))
        return list(zip(gains, shifts, strict=True))
