"""Normalisation over the pixels whose surface is known, with the modulation folded in."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.layers.remat import dear

Modulation = tuple[Float[Array, "batch 1 1 channels"], Float[Array, "batch 1 1 channels"]]
"""Factor and summand of a layer's features."""

BATCH_OF_BATCH_NORM = 16
"""Samples from which adaptive normalisation trusts the statistics of a batch."""


def choose_norm(kind: str, batch_size: int | None = None) -> Literal["batch", "group"]:
    """The normalisation that ``kind`` asks for: chosen once, before training.

    Args:
        kind: ``"batch"``, ``"group"``, or ``"adaptive"``: BatchNorm for batches of 16 samples or more,
            else GroupNorm. The statistics of few samples are noise: Wu and He 2018, figure 1.
        batch_size: samples that share a training step's statistics; only ``"adaptive"`` needs it.

    Raises:
        ValueError: another kind, or an adaptive one without a batch size.

    >>> choose_norm("adaptive", batch_size=8), choose_norm("adaptive", batch_size=16)
    ('group', 'batch')
    """
    if kind not in ("batch", "group", "adaptive"):
        raise ValueError(f"norm = {kind!r}: must be 'batch', 'group' or 'adaptive'")
    if kind != "adaptive":
        return kind
    if batch_size is None or batch_size < 1:
        raise ValueError(f"norm = 'adaptive' with batch_size = {batch_size}: must be 1 or more")
    return "batch" if batch_size >= BATCH_OF_BATCH_NORM else "group"


class Norm(nnx.Module):
    """BatchNorm or GroupNorm of ``[batch, height, width, channels]`` that leaves unknown pixels out.

    Statistics, affine weights and an optional `FiLM` modulation are one factor and one summand per sample
    and channel, applied in a single pass over the features. They are float32, whatever the features are.

    Attributes:
        kind: ``"batch"`` keeps running statistics for inference; ``"group"`` has none.
        parts: equal parts of a batch in training, each normalised by its own statistics (only ``"batch"``;
            Hoffer et al. 2017, Train longer, generalize better, arXiv:1705.08741).
        groups: the largest divisor of the channels up to 8.
        dtype: of what comes out.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167; Wu and He 2018, arXiv:1803.08494.
    """

    def __init__(
        self,
        channels: int,
        kind: Literal["batch", "group"] = "batch",
        *,
        parts: int = 1,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kind, self.parts = kind, parts
        self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype
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
        x = x.astype(jnp.float32)
        mean, var = self._batch_statistics(x, known, train) if self.kind == "batch" else self._group(x, known)
        factor = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        summand = self.bias[...] - mean * factor
        if modulation is not None:
            gain, shift = modulation
            factor, summand = factor * gain, summand * gain + shift
        return jnp.where(known, x * factor + summand, 0.0).astype(self.dtype)

    def _batch_statistics(self, x: Array, known: Array, train: bool) -> tuple[Array, Array]:
        if not train:
            return self.mean[...], self.var[...]
        if len(x) % self.parts:
            raise ValueError(f"batch_norm_parts = {self.parts}: must divide the batch of {len(x)} samples")
        features, there = (a.reshape(self.parts, -1, *a.shape[1:]) for a in (x, known))
        mean, var, pixels = _moments(features, there, (1, 2, 3))
        # A batch without a known pixel has no statistics to learn from; nor has such a part.
        share = pixels / jnp.maximum(jnp.sum(pixels), 1.0)
        rate = jnp.where(jnp.sum(pixels) > 0, 1.0 - self.momentum, 0.0)
        self.mean[...] += rate * (jnp.sum(share * mean, 0).ravel() - self.mean[...])
        self.var[...] += rate * (jnp.sum(share * var, 0).ravel() - self.var[...])
        if self.parts == 1:
            return mean.ravel(), var.ravel()
        mean, var = (jnp.repeat(moment[:, 0], len(x) // self.parts, axis=0) for moment in (mean, var))
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


class AdaptiveNorm(Norm):
    """A `Norm` whose kind follows from the batch size of the training, by `choose_norm`.

    A smaller last batch or evaluation changes nothing: the choice is made here, for good.

    Args:
        channels: of the features.
        batch_size: samples that share a training step's statistics.
        options: further arguments of `Norm`.

    >>> AdaptiveNorm(12, batch_size=4, rngs=nnx.Rngs(0)).kind
    'group'
    """

    def __init__(self, channels: int, batch_size: int | None, **options: Any):
        super().__init__(channels, choose_norm("adaptive", batch_size), **options)


def _moments(x: Array, known: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Mean and variance over known pixels, and how many there were, dimensions kept.

    Where there is none, the variance is 1: dividing by nearly 0 would blow up what follows, and its gradient.
    """
    weight = known.astype(jnp.float32)
    pixels = dear(jnp.sum(weight, axis=axes, keepdims=True))
    divisor = jnp.maximum(pixels, 1.0)
    mean = dear(jnp.sum(x * weight, axis=axes, keepdims=True)) / divisor
    var = dear(jnp.sum(x * x * weight, axis=axes, keepdims=True)) / divisor - mean**2
    return mean, jnp.where(pixels > 0, jnp.maximum(var, 0.0), 1.0), pixels
