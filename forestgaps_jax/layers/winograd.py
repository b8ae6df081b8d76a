"""The gradient of 3x3 kernels with fewer multiplications, where XLA on a CPU is slow by itself.

Winograd's algorithm: tiles of m + 2 pixels of the image, which overlap by two, and tiles of m x m pixels of
the gradient of the output are transformed by sums with small factors; matrix products of channels over all
tiles follow, one for each place in a tile; sums transform these into the 3x3 taps. It multiplies 2.25 (m = 2)
or 4 times less (m = 4). Errors are some 1e-6 or 3e-5 of the gradient's size. Forward and for the image it
gains little or nothing.

Source: Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308; the gradient
of a kernel is the transposed of its algorithm.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch height width channels_out"]
Kernel = Float[Array, "3 3 channels channels_out"]

ENOUGH = 3 * 10**8
"""Operations of a pass from which on it is worth the time that it takes to compile."""

PART = 2**21
"""Numbers of image and output together of which the gradient is computed at once, to stay in the cache."""


class Transform(NamedTuple):
    """The matrices of F(m x m, 3 x 3): of tiles of the image, of the kernel, and to tiles of the output."""

    image: np.ndarray
    kernel: np.ndarray
    output: np.ndarray


TRANSFORMS = {
    2: Transform(
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    4: Transform(
        np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        np.array(
            [
                [1 / 4, 0, 0],
                [-1 / 6, -1 / 6, -1 / 6],
                [-1 / 6, 1 / 6, -1 / 6],
                [1 / 24, 1 / 12, 1 / 6],
                [1 / 24, -1 / 12, 1 / 6],
                [0, 0, 1],
            ]
        ),
        np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    ),
}


def is_faster(image: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether `conv3x3` trains faster than XLA's own convolution of these shapes, where it runs."""
    batch, height, width, channels_in = image
    fits = tuple(kernel[:2]) == (3, 3) and height % 4 == width % 4 == 0 and channels_in >= 32
    large = 2 * batch * height * width * int(np.prod(kernel)) >= ENOUGH
    return fits and large and jax.default_backend() == "cpu"


@jax.custom_vjp
def conv3x3(x: Image, kernel: Kernel) -> Output:
    """Convolve with zeros around, by XLA; the kernel's gradient is by Winograd's algorithm.

    Height and width must be multiples of 4.
    """
    return _convolve(x, kernel)


def _convolve(x: Image, kernel: Kernel) -> Output:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x: Image, kernel: Kernel) -> tuple[Output, tuple[Image, Kernel]]:
    return conv3x3(x, kernel), (x, kernel)


def _backward(saved: tuple[Image, Kernel], change: Output) -> tuple[Image, Kernel]:
    x, kernel = saved
    _, to_image = jax.vjp(lambda x: _convolve(x, kernel), x)
    return to_image(change)[0], kernel_gradient(x, change, 2 if min(x.shape[1:3]) <= 8 else 4)


conv3x3.defvjp(_forward, _backward)


def kernel_gradient(x: Image, change: Output, size: int) -> Kernel:
    """The gradient of the kernel.

    Args:
        x: the image.
        change: the gradient of the output.
        size: side of the output's tiles: 2 or 4.
    """
    enough = (n for n in range(1, len(x)) if len(x) % n == 0 and (x.size + change.size) // n <= PART)
    count = next(enough, len(x))
    if count == 1:
        return _kernel_gradient(x, change, size)
    parts = tuple(a.reshape(count, -1, *a.shape[1:]) for a in (x, change))
    return jnp.sum(lax.map(lambda part: _kernel_gradient(part[0], part[1], size), parts), 0)


def _kernel_gradient(x: Image, change: Output, size: int) -> Kernel:
    dims = ((1,), (1,)), ((0,), (0,))
    pairs = zip(_image_tiles(x, size), _change_tiles(change, size), strict=True)
    products = lax.optimization_barrier([lax.dot_general(*pair, dims) for pair in pairs])
    matrix = TRANSFORMS[size].kernel.T
    columns = lax.optimization_barrier([_combine(factors, products) for factors in matrix])
    taps = [[_combine(factors, list(column)) for column in columns] for factors in matrix]
    return jnp.stack([jnp.stack(row) for row in taps])


def _image_tiles(x: Image, size: int) -> list[Array]:
    batch, height, width, channels = x.shape
    matrix = TRANSFORMS[size].image
    rows, columns, taps = height // size, width // size, range(size + 2)
    around = (1, size - 1)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0))).reshape(batch, rows + 1, size, -1, channels)
    padded = lax.optimization_barrier(padded)
    lines = [padded[:, k // size : k // size + rows, k % size] for k in taps]
    line = lax.optimization_barrier(jnp.stack([_combine(factors, lines) for factors in matrix]))
    parts = line.reshape(size + 2, batch * rows, columns + 1, size, channels)
    places = [parts[:, :, k // size : k // size + columns, k % size] for k in taps]
    shape = size + 2, batch * rows * columns, channels
    return lax.optimization_barrier([_combine(factors, places).reshape(shape) for factors in matrix])


def _change_tiles(change: Image, size: int) -> list[Array]:
    batch, height, width, channels = change.shape
    matrix = TRANSFORMS[size].output.T
    parts = change.reshape(batch, height // size, size, -1, channels)
    lines = [parts[:, :, k] for k in range(size)]
    line = lax.optimization_barrier(jnp.stack([_combine(factors, lines) for factors in matrix]))
    pixels = line.reshape(size + 2, -1, width // size, size, channels)
    places = [pixels[:, :, :, k] for k in range(size)]
    shape = size + 2, -1, channels
    return lax.optimization_barrier([_combine(factors, places).reshape(shape) for factors in matrix])


def _combine(factors: np.ndarray, arrays: Sequence[Array]) -> Array:
    used = [(float(factor), array) for factor, array in zip(factors, arrays, strict=True) if factor]
    terms = [array if factor == 1 else array * jnp.asarray(factor, array.dtype) for factor, array in used]
    return sum(terms[1:], terms[0])
