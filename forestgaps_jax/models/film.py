"""Feature-wise linear modulation: how the height threshold steers the network."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class ThresholdEmbedding(nnx.Module):
    """A small perceptron from the scaled threshold ``[batch]`` to a vector ``[batch, width]``."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(1, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, threshold: Float[Array, " batch"]) -> Float[Array, "batch width"]:
        """Embed thresholds that `normalize_height` has scaled."""
        return jax.nn.gelu(self.out(jax.nn.gelu(self.hidden(threshold[:, None]))))


class FiLM(nnx.Module):
    """Scale and shift of each channel, read off the threshold's embedding.

    The last layer starts at zero and the scale is ``1 + gamma``: at the start features pass unchanged.

    Source: Perez et al. 2018, FiLM: Visual Reasoning with a General Conditioning Layer, arXiv:1709.07871.
    """

    def __init__(self, width: int, channels: int, *, rngs: nnx.Rngs):
        self.project = nnx.Linear(width, 2 * channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self, embedding: Float[Array, "batch width"]
    ) -> tuple[Float[Array, "batch 1 1 channels"], Float[Array, "batch 1 1 channels"]]:
        """The factor and the summand for features ``[batch, height, width, channels]``."""
        gamma, beta = jnp.split(self.project(embedding)[:, None, None, :], 2, axis=-1)
        return 1.0 + gamma, beta
