"""U-Nets from a surface tile to gap logits, or to canopy heights."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.layers.conv import Layers
from forestgaps_jax.layers.drop_path import Rate
from forestgaps_jax.models.attention import AttentionGate
from forestgaps_jax.models.blocks import ConvBlock, ResidualBlock
from forestgaps_jax.models.network import OPENING_WINDOWS, Network, Passage
from forestgaps_jax.models.resize import double, halve

BLOCKS = {"plain": ConvBlock, "residual": ResidualBlock}


class UNet(Network):
    """Encoder and decoder with skip connections; heights go in as metres, logits come out.

    Args:
        film: steer every convolution by the threshold (`FiLM`); without, the threshold is ignored.
        block: ``"plain"`` (`ConvBlock`) or ``"residual"`` (`ResidualBlock`).
        attention: weigh the skip connections by an `AttentionGate`.
        cbam: weigh each residual branch by `CBAM`.
        features: channels of the first level, doubled at each level down.
        depth: how often the tile is halved.
        norm: ``"batch"``, ``"group"``, or ``"adaptive"``: `choose_norm` by ``batch_size``.
        batch_size: of the training, for adaptive normalisation.
        dropout: share of the bottom's features dropped in training.
        drop_path_rate: chance in training to skip the residual branch of the bottom block; a block at
            level ``i`` of ``depth + 1`` has ``(i + 1) / (depth + 1)`` of it.
        height_scale: metres that count as 1.
        detrend: take the tile's least-squares plane off, so that no tilt of the ground reaches the network.
        opening_windows: sides (px, odd) of grey openings; the surface above each is one more input channel.
        precision: ``"float32"``, or ``"bfloat16"`` for all convolutions but the first, which sees heights,
            and the last, which gives logits.
        remat: compute features again in the backward pass instead of keeping them.
        spectral_norm: divide each convolution's kernel by its largest singular value.
        batch_norm_parts: equal parts of a batch that BatchNorm takes apart in training.
        rngs: the ``params`` stream initialises the weights; no random state is kept.

    Attributes:
        cell: side of what the first block sees as one pixel.

    Source: Ronneberger et al. 2015, U-Net, arXiv:1505.04597.
    """

    cell = 1

    def __init__(
        self,
        *,
        film: bool,
        block: str = "plain",
        attention: bool = False,
        cbam: bool = False,
        features: int = 32,
        depth: int = 4,
        norm: str = "batch",
        batch_size: int | None = None,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        height_scale: float = 10.0,
        detrend: bool = True,
        opening_windows: Sequence[int] = OPENING_WINDOWS,
        precision: str = "float32",
        remat: bool = False,
        spectral_norm: bool = False,
        batch_norm_parts: int = 1,
        rngs: nnx.Rngs,
    ):
        if block not in BLOCKS:
            raise ValueError(f"block = {block!r}: must be one of {', '.join(BLOCKS)}")
        layers = Layers(rngs, norm, batch_size, precision, spectral_norm, batch_norm_parts)
        channels = [features * 2**level for level in range(depth + 1)]
        super().__init__(
            layers,
            stride=self.cell * 2**depth,
            steered=[c for c in (*channels, *reversed(channels[:-1])) for _ in range(2)] if film else None,
            dropout=dropout,
            drop_path_rate=drop_path_rate,
            height_scale=height_scale,
            detrend=detrend,
            opening_windows=opening_windows,
            remat=remat,
        )

        def make(channels_in: int, level: int, entry: bool = False) -> ConvBlock:
            share = (level + 1) / (depth + 1)
            return BLOCKS[block](channels_in, channels[level], layers, share=share, cbam=cbam, entry=entry)

        incoming = [self.inputs, *channels]
        *encoder, bottom = (make(incoming[level], level, level == 0) for level in range(depth + 1))
        self.encoder, self.bottom = nnx.List(encoder), bottom
        self.narrow = nnx.List(
            [layers.conv(channels[i + 1], channels[i], 1, use_bias=True) for i in range(depth)]
        )
        gates = [AttentionGate(channels[i], channels[i + 1], layers) for i in range(depth)]
        self.gates = nnx.List(gates) if attention else None
        self.decoder = nnx.List([make(2 * channels[level], level) for level in range(depth)])
        self.head = layers.conv(features, self.outputs, 1, use_bias=True, exact=True)

    @property
    def inputs(self) -> int:
        """Channels that enter the first block."""
        return 1 + len(self.opening_windows)

    @property
    def outputs(self) -> int:
        """Channels that the last convolution gives."""
        return 1

    def __call__(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | None = None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        drop_path_rate: Rate | None = None,
        resolution: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width 1"]:
        """Logits that the canopy is lower than the threshold.

        Args:
            dsm: surface height, metres; NaN where not known.
            threshold: canopy height, metres, one a sample; a network without FiLM ignores it.
            rngs: streams ``dropout`` and ``drop_path``, needed in training where their rates are not 0.
            train: use batch statistics and drop at random.
            drop_path_rate: chance to skip the deepest branch, now; None for the network's own.
            resolution: side of a pixel, metres, one a sample; a network without FiLM ignores it. None: 1 m.

        Raises:
            ValueError: the tile has not the shape, or the threshold is missing.
        """
        x, known, passage = self.begin(dsm, threshold, rngs, train, drop_path_rate, resolution)
        return self.decode(x, known, passage)

    def decode(
        self,
        x: Float[Array, "batch height width channels"],
        known: Bool[Array, "batch height width 1"],
        passage: Passage,
    ) -> Float[Array, "batch height width outputs"]:
        """Through encoder, decoder and head."""
        train, skips = passage.train, []
        for block in self.encoder:
            x = passage.through(block, x, known)
            skips.append((x, known))
            x, known = halve(x), halve(known)
        x = passage.through(self.bottom, x, known)
        x = self.dropout(x, deterministic=not train, rngs=passage.rngs)
        for level in reversed(range(len(skips))):
            skip, known = skips.pop()
            if self.gates is not None:
                skip = self.gates[level](skip, x, train)
            # Narrowing before doubling needs a quarter of the arithmetic, and gives the same.
            x = jnp.concatenate([skip, double(self.narrow[level](x, train))], axis=-1)
            x = passage.through(self.decoder[level], x, known)
        return self.head(x, train)
