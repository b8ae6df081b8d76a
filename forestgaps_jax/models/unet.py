"""U-Nets from a surface tile to gap logits, steered by the height threshold or not."""

from itertools import repeat
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.models.blocks import ConvBlock, conv, double, halve
from forestgaps_jax.models.film import FiLM, ThresholdEmbedding
from forestgaps_jax.models.height import normalize_height

EMBEDDING = 64
"""Width of the threshold's embedding."""


class UNet(nnx.Module):
    """Encoder and decoder with skip connections; heights go in as metres, logits come out.

    Args:
        film: steer every convolution by the threshold (`FiLM`); without, the threshold is ignored.
        features: channels of the first level, doubled at each level down.
        depth: how often the tile is halved.
        norm: ``"batch"`` or ``"group"``.
        dropout: share of the bottom's features dropped in training.
        drop_path_rate: chance in training to skip the residual branch of the bottom block; a block at
            level ``i`` of ``depth + 1`` has ``(i + 1) / (depth + 1)`` of it.
        height_scale: metres that count as 1.
        rngs: the ``params`` stream initialises the weights; no random state is kept.

    Source: Ronneberger et al. 2015, U-Net, arXiv:1505.04597.
    """

    def __init__(
        self,
        *,
        film: bool,
        features: int = 32,
        depth: int = 4,
        norm: Literal["batch", "group"] = "batch",
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        height_scale: float = 10.0,
        rngs: nnx.Rngs,
    ):
        self.stride, self.height_scale = 2**depth, height_scale
        channels = [features * 2**level for level in range(depth + 1)]

        def block(channels_in: int, level: int) -> ConvBlock:
            return ConvBlock(
                channels_in,
                channels[level],
                norm=norm,
                drop_path_rate=drop_path_rate * (level + 1) / (depth + 1),
                rngs=rngs,
            )

        self.encoder = nnx.List([block(([1, *channels])[level], level) for level in range(depth)])
        self.bottom = block(([1, *channels])[depth], depth)
        self.dropout = nnx.Dropout(dropout)
        self.narrow = nnx.List(
            [conv(channels[level + 1], channels[level], (1, 1), rngs=rngs) for level in range(depth)]
        )
        self.decoder = nnx.List([block(2 * channels[level], level) for level in range(depth)])
        self.head = conv(features, 1, (1, 1), rngs=rngs)
        steered = [c for c in (*channels, *reversed(channels[:-1])) for _ in range(2)]
        self.embed = ThresholdEmbedding(EMBEDDING, rngs=rngs) if film else None
        self.film = FiLM(EMBEDDING, steered, rngs=rngs) if film else None

    def __call__(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | None = None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width 1"]:
        """Logits that the canopy is lower than the threshold.

        Args:
            dsm: surface height, metres; NaN where not known.
            threshold: canopy height, metres, one a sample; a network without FiLM ignores it.
            rngs: streams ``dropout`` and ``drop_path``, needed in training where their rates are not 0.
            train: use batch statistics and drop at random.

        Raises:
            ValueError: the tile has not the shape, or the threshold is missing.
        """
        threshold = self._check(dsm, threshold)
        x, threshold, known = normalize_height(dsm, threshold, self.height_scale)
        steer = iter(self.film(self.embed(threshold))) if self.film and self.embed else repeat(None)
        skips = []
        for block in self.encoder:
            x = block(x, known, next(steer), next(steer), rngs, train)
            skips.append((x, known))
            x, known = halve(x), halve(known)
        x = self.bottom(x, known, next(steer), next(steer), rngs, train)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        for narrow, block in zip(reversed(self.narrow), reversed(self.decoder), strict=True):
            skip, known = skips.pop()
            # Narrowing before doubling needs a quarter of the arithmetic, and gives the same.
            x = jnp.concatenate([skip, double(narrow(x))], axis=-1)
            x = block(x, known, next(steer), next(steer), rngs, train)
        return self.head(x)

    def _check(self, dsm: Array, threshold: Array | None) -> Array:
        if dsm.ndim != 4 or dsm.shape[-1] != 1:
            hint = "; transpose it by (0, 2, 3, 1)" if dsm.ndim == 4 and dsm.shape[1] == 1 else ""
            raise ValueError(f"dsm has shape {dsm.shape}: must be [batch, height, width, 1]{hint}")
        if dsm.shape[1] % self.stride or dsm.shape[2] % self.stride:
            raise ValueError(
                f"tile of {dsm.shape[1]} x {dsm.shape[2]} px: both must be multiples of {self.stride}, "
                "since the network halves them that often; pad the tile with NaN or choose another depth"
            )
        if threshold is None and self.embed is None:
            return jnp.zeros(dsm.shape[0])
        if threshold is None or threshold.shape != dsm.shape[:1]:
            given = None if threshold is None else threshold.shape
            raise ValueError(f"threshold has shape {given}: must be {dsm.shape[:1]}, one height a sample")
        return threshold
