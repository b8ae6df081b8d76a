"""The layers that blocks are built of."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.layers.conv3x3 import faster_conv3x3
from forestgaps_jax.layers.initializers import he_normal
from forestgaps_jax.layers.norm import AdaptiveNorm, Norm, choose_norm
from forestgaps_jax.layers.remat import dear


class Conv(nnx.Module):
    """Convolution of ``[batch, height, width, channels]`` with zeros around, spectrally normalised or not.

    With spectral normalisation the kernel, seen as a matrix from all inputs of a pixel to its outputs, is
    divided by its largest singular value, which one step of power iteration follows in each training step.
    The parameter itself is left as it is (``nnx.SpectralNorm`` writes the divided kernel into it).

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        size: side of the kernel.
        stride: pixels between outputs.
        dilation: pixels between the kernel's taps.
        use_bias: add a bias.
        spectral_norm: divide the kernel.
        dtype: what is computed in; parameters are float32.
        exact: compute in float32, and multiply in it: by default TPUs round the factors to bfloat16, whatever
            their type, and GPUs to TF32.
        rngs: the ``params`` stream initialises the weights.

    Source: Miyato et al. 2018, Spectral Normalization for GANs, arXiv:1802.05957.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = False,
        spectral_norm: bool = False,
        dtype: Any = jnp.float32,
        exact: bool = False,
        rngs: nnx.Rngs,
    ):
        self.stride, self.dilation = stride, dilation
        self.dtype, self.exact = jnp.float32 if exact else dtype, exact
        self.kernel = nnx.Param(he_normal(rngs.params(), (size, size, channels_in, channels)))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (channels,))) if use_bias else None
        start = he_normal(rngs.params(), (channels,)) if spectral_norm else None
        self.direction = None if start is None else nnx.BatchStat(start)

    def __call__(
        self, x: Float[Array, "batch height width channels_in"], train: bool = False
    ) -> Float[Array, "batch height2 width2 channels"]:
        """Convolve; training moves the estimate of the largest singular value."""
        kernel = self.kernel[...]
        if self.direction is not None:
            kernel = kernel / self._largest_singular_value(kernel, self.direction, train)
        y = dear(self._convolve(x.astype(self.dtype), kernel.astype(self.dtype)))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def _convolve(self, x: Array, kernel: Array) -> Array:
        simple = self.stride == self.dilation == 1 and not self.exact
        faster = faster_conv3x3(x.shape, kernel.shape, self.dtype) if simple else None
        if faster is not None:
            return faster(x, kernel)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            "SAME",
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST if self.exact else None,
        )

    def _largest_singular_value(self, kernel: Array, direction: nnx.BatchStat, train: bool) -> Array:
        with jax.default_matmul_precision("highest"):
            matrix = kernel.reshape(-1, kernel.shape[-1])
            fixed = jax.lax.stop_gradient(matrix)
            left = _unit(fixed @ direction[...])
            right = _unit(left @ fixed)
            if train:
                direction[...] = right
            return jnp.maximum(left @ matrix @ right, 1e-12)


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)


@dataclass(frozen=True)
class Layers:
    """Makes all layers of one network, alike.

    Args:
        rngs: the ``params`` stream initialises the weights.
        norm: a kind of `choose_norm`.
        batch_size: of the training, for adaptive normalisation.
        precision: ``"float32"`` or ``"bfloat16"``: what convolutions and activations are computed in.
        spectral_norm: normalise every convolution's kernel.
        batch_norm_parts: of each batch, see `Norm`.

    Raises:
        ValueError: a setting that is not among these.
    """

    rngs: nnx.Rngs
    norm: str = "batch"
    batch_size: int | None = None
    precision: str = "float32"
    spectral_norm: bool = False
    batch_norm_parts: int = 1

    def __post_init__(self) -> None:
        choose_norm(self.norm, self.batch_size)
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision = {self.precision!r}: must be 'float32' or 'bfloat16'")

    @property
    def dtype(self) -> Any:
        """What features are computed in."""
        return jnp.dtype(self.precision)

    def conv(self, channels_in: int, channels: int, size: int, **options: Any) -> Conv:
        """A convolution."""
        options = {"spectral_norm": self.spectral_norm, "dtype": self.dtype, **options}
        return Conv(channels_in, channels, size, rngs=self.rngs, **options)

    def normalize(self, channels: int) -> Norm:
        """A normalisation."""
        options: dict[str, Any] = {"parts": self.batch_norm_parts, "dtype": self.dtype, "rngs": self.rngs}
        if self.norm == "adaptive":
            return AdaptiveNorm(channels, self.batch_size, **options)
        return Norm(channels, choose_norm(self.norm), **options)
