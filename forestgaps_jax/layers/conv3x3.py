"""3x3 convolutions by the algorithm that trains fastest on a CPU; on other devices XLA's own is."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.layers.winograd import Image, Kernel, Output, convolve, kernel_gradient, xla_convolve

ENOUGH = 3 * 10**8
"""Operations of a pass from which on it is worth the time that it takes to compile."""


def is_faster(image: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether `conv3x3` trains faster than XLA's own convolution of these shapes, where it runs."""
    batch, height, width, channels_in = image
    fits = tuple(kernel[:2]) == (3, 3) and height % 4 == width % 4 == 0 and channels_in >= 32
    large = 2 * batch * height * width * int(np.prod(kernel)) >= ENOUGH
    return fits and large and jax.default_backend() == "cpu"


@jax.custom_vjp
def conv3x3(x: Image, kernel: Kernel) -> Output:
    """Convolve with zeros around, by Winograd's algorithm in the passes where it is faster.

    Height and width must be multiples of 4.
    """
    return _convolve(x, kernel, 128)


def _convolve(x: Image, kernel: Kernel, largest: int) -> Output:
    """By rows where there is more to multiply than to move: many channels, not too large, not too small.

    Sides up to the ``largest`` gain: 128 px in inference, 64 px in training, which has more in memory.
    """
    sides, channels = x.shape[1:3], kernel.shape[2:]
    by_rows = min(sides) >= 16 and max(sides) <= largest and min(channels) >= 32
    return convolve(x, kernel) if by_rows else xla_convolve(x, kernel)


def _forward(x: Image, kernel: Kernel) -> tuple[Output, tuple[Image, Kernel]]:
    return _convolve(x, kernel, 64), (x, kernel)


def _backward(saved: tuple[Image, Kernel], change: Output) -> tuple[Image, Kernel]:
    x, kernel = saved
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    return _convolve(change, turned, 64), kernel_gradient(x, change, 2 if min(x.shape[1:3]) <= 8 else 4)


conv3x3.defvjp(_forward, _backward)
