"""U-Nets that predict canopy height, which any threshold then cuts."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.layers.drop_path import Rate
from forestgaps_jax.models.network import OPENING_WINDOWS
from forestgaps_jax.models.unet import UNet

_SMALLEST_SCALE = 0.05
"""Metres: the surest that a prediction can be; the sensor's own noise."""


class RegressionUNet(UNet):
    """A U-Net that predicts canopy height, metres; a threshold only cuts what it has predicted.

    Args:
        rngs: the ``params`` stream initialises the weights.
        options: arguments of `UNet` but ``film``.

    >>> model = RegressionUNet(rngs=nnx.Rngs(0), features=4, depth=1)
    >>> dsm = jnp.zeros((1, 4, 4, 1))
    >>> heights, logits = model(dsm), model(dsm, jnp.array([5.0]))
    >>> bool(((logits > 0) == (heights < 5.0)).all())
    True
    """

    def __init__(self, *, rngs: nnx.Rngs, **options: Any):
        super().__init__(film=False, rngs=rngs, **options)

    def __call__(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | None = None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        drop_path_rate: Rate | None = None,
        resolution: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width 1"]:
        """Canopy height, metres; with a threshold, how many metres the canopy is below it.

        The latter serves as a logit: above 0 where the canopy is lower than the threshold. Arguments as in
        `UNet`.
        """
        height = self.height_scale * super().__call__(dsm, threshold, rngs, train, drop_path_rate, resolution)
        return height if threshold is None else threshold[:, None, None, None] - height


class HeightDistributionUNet(UNet):
    """Base of the U-Nets that predict canopy height as a logistic distribution; gap is what lies below.

    They are steered by the size of a pixel (`FiLM`), not by the threshold. The logit at a threshold ``t`` is
    ``(t - median) / scale``: the gap probability is the distribution function, which rises with ``t``, so a
    gap at 5 m is one at 10 m, and one pass serves every threshold.

    Args:
        opening_windows: sides (px, odd) of grey openings, one at least, from which the median is mixed.
        rngs: the ``params`` stream initialises the weights.
        options: arguments of `UNet` but ``film``.

    Attributes:
        registered: name of the network among `forestgaps_jax.models.MODELS`.

    Raises:
        ValueError: there is no window.
    """

    registered = ""
    several_thresholds = True

    def __init__(self, *, opening_windows: Sequence[int] = OPENING_WINDOWS, rngs: nnx.Rngs, **options: Any):
        if not opening_windows:
            raise ValueError(f"opening_windows is empty: {self.registered} mixes openings, give one or more")
        super().__init__(film=True, opening_windows=opening_windows, rngs=rngs, **options)
        # It starts near an even mixture of what it mixes.
        self.head.kernel[...] *= 0.1

    def distribution(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"],
        rngs: nnx.Rngs | None,
        train: bool,
        drop_path_rate: Rate | None,
        resolution: Float[Array, " batch"] | None,
    ) -> tuple[Float[Array, "batch height width 1"], Float[Array, "batch height width 1"]]:
        """Median (m) of each pixel's canopy height, and its scale for `logistic_logits`.

        Arguments as in `Network.begin`; the threshold is one that steers nothing.
        """
        raise NotImplementedError

    def __call__(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | Float[Array, "batch thresholds"] | None = None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        drop_path_rate: Rate | None = None,
        resolution: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch height width thresholds"]:
        """Logits that the canopy is lower than the thresholds; without one, the median height, metres.

        Arguments as in `UNet`, but that a sample may have several thresholds.
        """
        unsteered = self.check(dsm, threshold)
        median, scale = self.distribution(dsm, unsteered, rngs, train, drop_path_rate, resolution)
        return median if threshold is None else logistic_logits(threshold, median, scale)


class DistributionUNet(HeightDistributionUNet):
    """A U-Net that predicts each pixel's canopy height as a distribution (see `HeightDistributionUNet`).

    Its median is a mixture of the surface's heights above its grey openings, chosen pixel by pixel, and a
    correction. So the network starts as good as the openings, which need no training, and learns where they
    fail.

    >>> model = DistributionUNet(rngs=nnx.Rngs(0), features=4, depth=1, opening_windows=(3,))
    >>> dsm = jnp.zeros((1, 4, 4, 1))
    >>> bool((model(dsm, jnp.array([5.0])) < model(dsm, jnp.array([10.0]))).all())
    True
    """

    registered = "unet_distribution"

    @property
    def outputs(self) -> int:
        """Shares of the openings, correction and scale."""
        return len(self.opening_windows) + 2

    def distribution(
        self,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"],
        rngs: nnx.Rngs | None,
        train: bool,
        drop_path_rate: Rate | None,
        resolution: Float[Array, " batch"] | None,
    ) -> tuple[Float[Array, "batch height width 1"], Float[Array, "batch height width 1"]]:
        """Median and scale of each pixel."""
        x, known, passage = self.begin(dsm, threshold, rngs, train, drop_path_rate, resolution)
        opened, correction, scale = mix(self.decode(x, known, passage), x[..., 1:])
        return self.height_scale * (opened + correction), scale


def mix(
    outputs: Float[Array, "batch height width outputs"], mixed: Float[Array, "batch height width inputs"]
) -> tuple[Float[Array, "batch height width 1"], ...]:
    """What a network's shares make of heights, and its last two outputs: correction and scale.

    Args:
        outputs: a share for each of the heights, then correction and scale.
        mixed: the heights.
    """
    count = mixed.shape[-1]
    shares, correction, scale = jnp.split(outputs, (count, count + 1), axis=-1)
    # The factor makes shares as quick to learn as the correction.
    return jnp.sum(jax.nn.softmax(3.0 * shares) * mixed, axis=-1, keepdims=True), correction, scale


def logistic_logits(
    threshold: Float[Array, " batch"] | Float[Array, "batch thresholds"],
    median: Float[Array, "batch height width 1"],
    scale: Float[Array, "batch height width 1"],
) -> Float[Array, "batch height width thresholds"]:
    """Logits that a logistic canopy height is below thresholds.

    Args:
        threshold: one or several a sample, metres.
        median: of the distribution, metres.
        scale: what a network gives for the distribution's scale: any number.
    """
    # Thresholds before pixels: where they are to be samples, nothing is moved.
    heights = threshold.reshape(threshold.shape[0], -1, 1, 1)
    median, scale = (image[:, None, :, :, 0] for image in (median, scale))
    # The factor makes the scale as quick to learn as the median.
    return jnp.moveaxis((heights - median) / (jax.nn.softplus(2.0 * scale + 1.0) + _SMALLEST_SCALE), 1, -1)
