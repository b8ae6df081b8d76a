"""3x3 convolutions by the algorithm that trains fastest on a CPU; on other devices XLA's own is."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from forestgaps_jax.host import multiplies_bfloat16
from forestgaps_jax.layers.conv3x3_bfloat16 import conv3x3_bfloat16
from forestgaps_jax.layers.winograd import (
    Image,
    Kernel,
    Output,
    convolve,
    kernel_gradient,
    row_taps,
    xla_convolve,
)

ENOUGH = 3 * 10**8
"""Operations of a pass from which on it is worth the time that it takes to compile."""


def faster_conv3x3(image: Sequence[int], kernel: Sequence[int], dtype: Any) -> Callable[..., Array] | None:
    """What trains faster than XLA's own convolution of these shapes, where it runs; None if nothing does.

    Args:
        image: shape of the input.
        kernel: shape of the kernel, whose taps are neighbours and are moved by one pixel.
        dtype: of both.
    """
    batch, height, width, channels_in = image
    fits = tuple(kernel[:2]) == (3, 3) and channels_in >= 32
    large = 2 * batch * height * width * int(np.prod(kernel)) >= ENOUGH
    if not (fits and large and jax.default_backend() == "cpu"):
        return None
    if jnp.dtype(dtype) == jnp.bfloat16:
        return conv3x3_bfloat16 if multiplies_bfloat16() else None
    return conv3x3 if height % 4 == width % 4 == 0 else None


@jax.custom_vjp
def conv3x3(x: Image, kernel: Kernel) -> Output:
    """Convolve with zeros around, by Winograd's algorithm in the passes where it is faster.

    Height and width must be multiples of 4.
    """
    if _gains_by_rows(x.shape[1:3], kernel.shape[2:]):
        return convolve(x, row_taps(kernel))
    return xla_convolve(x, kernel)


def _gains_by_rows(sides: Sequence[int], channels: Sequence[int]) -> bool:
    """Whether there is more to multiply than to move: many channels, not too large, not too small."""
    large = max(sides) > 128 and max(channels) < 64
    return min(sides) >= 16 and not large and min(channels) >= 32


def _forward(x: Image, kernel: Kernel) -> tuple[Output, tuple[Image, Kernel]]:
    return conv3x3(x, kernel), (x, kernel)


def _backward(saved: tuple[Image, Kernel], change: Output) -> tuple[Image, Kernel]:
    x, kernel = saved
    small = min(x.shape[1:3]) <= 8
    gradients = _image_gradient(change, kernel), kernel_gradient(x, change, 2 if small else 4)
    # Else the kernel's would wait, and hold the image, until all other gradients are there.
    return lax.optimization_barrier(gradients)


def _image_gradient(change: Output, kernel: Kernel) -> Image:
    """Kernels are large where images are small: there they are taken as they lie, else turned around."""
    if max(change.shape[1:3]) <= 8:
        return _small_image_gradient(change, kernel)
    turned = kernel[::-1, ::-1]
    if _gains_by_rows(change.shape[1:3], kernel.shape[2:]):
        return convolve(change, row_taps(lax.optimization_barrier(jnp.swapaxes(turned, 2, 3))))
    return xla_convolve(change, jnp.swapaxes(turned, 2, 3))


def _small_image_gradient(change: Output, kernel: Kernel) -> Image:
    """What each pixel of the output says of all nine that it was made of, and then their sums."""
    batch, height, width, channels = change.shape
    product = change.reshape(-1, channels) @ kernel.reshape(-1, channels).T
    said = lax.optimization_barrier(product).reshape(batch, height, width, 3, 3, -1)
    padded = jnp.pad(said, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
    places = [(y, x) for y in (2, 1, 0) for x in (2, 1, 0)]
    shifted = [padded[:, y : y + height, x : x + width, 2 - y, 2 - x] for y, x in places]
    return sum(shifted[1:], shifted[0])


conv3x3.defvjp(_forward, _backward)
