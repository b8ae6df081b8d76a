"""Normalisation over the pixels whose surface is known, with the modulation folded in."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.models.film import Modulation


class Norm(nnx.Module):
    """BatchNorm or GroupNorm of ``[batch, height, width, channels]`` that leaves unknown pixels out.

    Statistics, affine weights and an optional `FiLM` modulation are one factor and one summand per sample
    and channel, applied in a single pass over the features.

    Attributes:
        kind: ``"batch"`` keeps running statistics for inference; ``"group"`` has none.
        groups: the largest divisor of the channels up to 8.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167; Wu and He 2018, arXiv:1803.08494.
    """

    def __init__(
        self,
        channels: int,
        kind: Literal["batch", "group"] = "batch",
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        if kind not in ("batch", "group"):
            raise ValueError(f"norm = {kind!r}: must be 'batch' or 'group'")
        self.kind, self.momentum, self.epsilon = kind, momentum, epsilon
        self.groups = max(g for g in range(1, 9) if channels % g == 0)
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (channels,)))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (channels,)))
        if kind == "batch":
            self.mean = nnx.BatchStat(jnp.zeros(channels))
            self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        known: Bool[Array, "batch height width 1"],
        modulation: Modulation | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Normalise, with 0 where not known.

        In training the statistics are the batch's, and move the running ones.
        """
        mean, var = self._batch_statistics(x, known, train) if self.kind == "batch" else self._group(x, known)
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        summand = self.bias[...] - mean * factor
        if modulation is not None:
            gain, shift = modulation
            factor, summand = factor * gain, summand * gain + shift
        return jnp.where(known, x * factor + summand, 0.0)

    def _batch_statistics(self, x: Array, known: Array, train: bool) -> tuple[Array, Array]:
        if not train:
            return self.mean[...], self.var[...]
        mean, var, pixels = _moments(x, known, (0, 1, 2))
        mean, var = mean.ravel(), var.ravel()
        # A batch without a known pixel has no statistics to learn from.
        rate = jnp.where(jnp.sum(pixels) > 0, 1.0 - self.momentum, 0.0)
        self.mean[...] += rate * (mean - self.mean[...])
        self.var[...] += rate * (var - self.var[...])
        return mean, var

    def _group(self, x: Array, known: Array) -> tuple[Array, Array]:
        mean, var, _ = _moments(x, known, (1, 2))
        mean_of_squares = self._share(var + mean**2)
        mean = self._share(mean)
        return mean, jnp.maximum(mean_of_squares - mean**2, 0.0)

    def _share(self, moment: Array) -> Array:
        """Give all channels of a group the mean of their moments ``[batch, 1, 1, channels]``."""
        grouped = moment.reshape(*moment.shape[:-1], self.groups, -1)
        return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(moment.shape)


def _moments(x: Array, known: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Mean and variance over known pixels, and how many there were, dimensions kept.

    Where there is none, the variance is 1: dividing by nearly 0 would blow up what follows, and its gradient.
    """
    weight = known.astype(jnp.float32)
    pixels = jnp.sum(weight, axis=axes, keepdims=True)
    divisor = jnp.maximum(pixels, 1.0)
    mean = jnp.sum(x * weight, axis=axes, keepdims=True) / divisor
    var = jnp.sum(x * x * weight, axis=axes, keepdims=True) / divisor - mean**2
    return mean, jnp.where(pixels > 0, jnp.maximum(var, 0.0), 1.0), pixels
