"""DeepLabV3+: one encoder, dilated convolutions for wide sight, a light decoder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from forestgaps_jax.layers.conv import Layers
from forestgaps_jax.layers.drop_path import Rate
from forestgaps_jax.layers.norm import Modulation
from forestgaps_jax.models.attention import mean_of_known
from forestgaps_jax.models.blocks import ConvBlock, ResidualBlock
from forestgaps_jax.models.network import OPENING_WINDOWS, Network
from forestgaps_jax.models.resize import double, halve


class ASPP(nnx.Module):
    """Atrous spatial pyramid pooling: sees each place at several distances, and the tile as a whole.

    The whole is the mean over known pixels. It is not normalised: over one pixel a sample there is nothing
    to take statistics of.

    Args:
        channels_in: channels of the input.
        channels: channels of each branch and of the output.
        rates: dilations of the 3x3 convolutions.
        layers: makes the layers.

    Source: Chen et al. 2017, Rethinking Atrous Convolution, arXiv:1706.05587.
    """

    def __init__(self, channels_in: int, channels: int, rates: Sequence[int], layers: Layers):
        near = layers.conv(channels_in, channels, 1)
        far = [layers.conv(channels_in, channels, 3, dilation=rate) for rate in rates]
        self.branches = nnx.List([near, *far])
        self.norm = layers.normalize(channels * len(self.branches))
        self.whole = layers.conv(channels_in, channels, 1, use_bias=True)
        self.merge = layers.conv(channels * (len(self.branches) + 1), channels, 1)
        self.norm_merged = layers.normalize(channels)

    def __call__(
        self,
        x: Float[Array, "batch height width channels_in"],
        known: Bool[Array, "batch height width 1"],
        steer: Modulation | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Apply the branches and merge them; ``steer`` modulates what comes out."""
        pyramid = jnp.concatenate([branch(x, train) for branch in self.branches], axis=-1)
        pyramid = jax.nn.relu(self.norm(pyramid, known, None, train))
        whole = jax.nn.relu(self.whole(mean_of_known(x, known)[:, None, None, :], train))
        whole = jnp.broadcast_to(whole, (*x.shape[:-1], whole.shape[-1]))
        merged = self.merge(jnp.concatenate([pyramid, whole], axis=-1), train)
        return jax.nn.relu(self.norm_merged(merged, known, steer, train))


class DeepLabV3Plus(Network):
    """Residual encoder with a dilated last stage, ASPP, and a decoder that adds low-level features.

    Logits are made at ``2^((depth + 1) // 2)`` pixels (4 for a depth of 4, as in the paper) and doubled
    bilinearly from there: smoother outlines than a U-Net's, for less work.

    Args:
        film: steer the encoder, the pyramid and the decoder by the threshold (`FiLM`); without, the
            threshold is ignored.
        features: channels after the first halving, doubled at each further one.
        depth: how often the encoder halves the tile (the paper's output stride is ``2^depth``), 1 or more.
        rates: dilations of the pyramid. The paper's 6, 12 and 18 are for tiles of 513 pixels; these fit
            tiles of 128 to 256.
        norm: as in `UNet`, like all that follow.
        batch_size: of the training, for adaptive normalisation.
        dropout: share of the pyramid's features dropped in training.
        drop_path_rate: chance in training to skip the residual branch of the deepest block.
        height_scale: metres that count as 1.
        detrend: take the tile's plane off, as in `UNet`.
        opening_windows: sides (px) of grey openings, as in `UNet`.
        precision: ``"float32"`` or ``"bfloat16"``.
        remat: compute features again in the backward pass instead of keeping them.
        spectral_norm: divide each convolution's kernel by its largest singular value.
        batch_norm_parts: equal parts of a batch that BatchNorm takes apart in training.
        rngs: the ``params`` stream initialises the weights; no random state is kept.

    Source: Chen et al. 2018, Encoder-Decoder with Atrous Separable Convolution, arXiv:1802.02611 (here with
    plain instead of separable convolutions, and a smaller encoder).
    """

    def __init__(
        self,
        *,
        film: bool,
        features: int = 32,
        depth: int = 4,
        rates: Sequence[int] = (2, 4, 6),
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
        if depth < 1:
            raise ValueError(f"depth = {depth}: must be 1 or more")
        layers = Layers(rngs, norm, batch_size, precision, spectral_norm, batch_norm_parts)
        stages = [features * 2**level for level in range(depth)]
        wide, pyramid = stages[-1], 4 * features
        stages += [wide, wide]
        super().__init__(
            layers,
            stride=2**depth,
            steered=[features, *(c for c in stages[1:] for _ in range(2)), *[pyramid] * 3] if film else None,
            dropout=dropout,
            drop_path_rate=drop_path_rate,
            height_scale=height_scale,
            detrend=detrend,
            opening_windows=opening_windows,
            remat=remat,
        )
        self.low_level = (depth + 1) // 2
        # An even kernel is centred on the 2x2 squares that `halve` and `double` keep.
        self.stem = layers.conv(1 + len(opening_windows), features, 6, stride=2, exact=True)
        self.norm_stem = layers.normalize(features)

        def stage(number: int) -> ResidualBlock:
            share, dilation = number / (len(stages) - 1), 1 if number < depth else 2
            return ResidualBlock(stages[number - 1], stages[number], layers, share=share, dilation=dilation)

        self.stages = nnx.List([stage(number) for number in range(1, len(stages))])
        self.pyramid = ASPP(wide, pyramid, rates, layers)
        self.low = layers.conv(stages[self.low_level - 1], features, 1)
        self.norm_low = layers.normalize(features)
        self.decoder = ConvBlock(pyramid + features, pyramid, layers, share=1 / (len(stages) - 1))
        self.head = layers.conv(pyramid, 1, 1, use_bias=True, exact=True)

    def __call__(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | None = None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        drop_path_rate: Rate | None = None,
        resolution: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width 1"]:
        """Logits that the canopy is lower than the threshold; arguments and errors as in `UNet`."""
        x, known, passage = self.begin(dsm, threshold, rngs, train, drop_path_rate, resolution)
        known = halve(known)
        x = jax.nn.relu(self.norm_stem(self.stem(x, train), known, next(passage.steer), train))
        levels = [(x, known)]
        depth = self.stride.bit_length() - 1
        for number, stage in enumerate(self.stages, start=1):
            if number < depth:
                x, known = halve(x), halve(known)
            x = passage.through(stage, x, known)
            levels.append((x, known))
        x = self.pyramid(x, known, next(passage.steer), train)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        for _ in range(depth - self.low_level):
            x = double(x)
        low, known = levels[self.low_level - 1]
        low = jax.nn.relu(self.norm_low(self.low(low, train), known, None, train))
        logits = self.head(passage.through(self.decoder, jnp.concatenate([x, low], axis=-1), known), train)
        for _ in range(self.low_level):
            logits = double(logits)
        return logits
