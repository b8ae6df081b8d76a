"""Winograd's algorithm: 3x3 convolutions and the gradients of their kernels with fewer multiplications.

Tiles of m + 2 pixels, which overlap by two, and the kernel's taps are transformed by sums with small factors;
products of channels follow, one for each place in a tile; sums transform these into m pixels. The transposed
of it gives the gradient of the kernel from tiles of the image and of the gradient of the output.

Source: Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
Output = Float[Array, "batch height width channels_out"]
Kernel = Float[Array, "3 3 channels channels_out"]
RowTaps = list[Float[Array, "3 channels channels_out"]]

PART = 3 * 2**20
"""Numbers of image and output of which a kernel's gradient is computed at once, to stay in the cache.

But at least twice as many as each part gives, which are all added up.
"""

ROWS = 4
"""Rows of the output that `convolve` computes at once."""


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


def row_taps(kernel: Kernel) -> RowTaps:
    """The kernel as `convolve` takes it: transformed along its height to six rows."""
    rows = list(kernel)
    return lax.optimization_barrier([_combine(factors, rows) for factors in TRANSFORMS[ROWS].kernel])


def convolve(x: Image, taps: RowTaps) -> Output:
    """Convolve with zeros around, with half of the multiplications.

    Tiles are 4 rows high and as wide as the image: transforms pass over whole rows, and what is left to
    multiply are six convolutions by rows of 3 taps. Errors are some 3e-6 of the output's size.

    Args:
        x: the image; its height must be a multiple of 4.
        taps: of `row_taps`.
    """
    matrices, lines = TRANSFORMS[ROWS], _lines(x, ROWS, ((1, ROWS - 1), (0, 0)))
    products = [
        xla_convolve(_combine(factors, lines), tap[None])
        for factors, tap in zip(matrices.image, taps, strict=True)
    ]
    y = jnp.stack([_combine(factors, products) for factors in matrices.output], 2)
    return y.reshape(*x.shape[:3], -1)


def xla_convolve(
    x: Image, kernel: Float[Array, "rows columns channels channels_out"]
) -> Float[Array, "batch height width channels_out"]:
    """Convolve with zeros around, by XLA."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient(x: Image, change: Output, size: int) -> Kernel:
    """The gradient of the kernel, with 2.25 (tiles of 2 x 2) or 4 times fewer multiplications (4 x 4).

    Errors are some 1e-6 or 3e-5 of the gradient's size.

    Args:
        x: the image; its sides must be multiples of ``size``.
        change: the gradient of the output.
        size: side of the output's tiles: 2 or 4.
    """
    batch, height, width, channels = x.shape
    most = max(PART, 2 * (size + 2) ** 2 * channels * change.shape[3])
    images, rows = _part(batch, height // size, most * batch * (height // size) // (x.size + change.size))
    rows *= size
    outlined = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))

    def of_part(number: Array) -> Kernel:
        start = number // (height // rows) * images, number % (height // rows) * rows, 0, 0
        part = lax.dynamic_slice(outlined, start, (images, rows + 2, width, channels))
        part_of_change = lax.dynamic_slice(change, start, (images, rows, *change.shape[2:]))
        return _kernel_gradient(part, part_of_change, size)

    count = batch // images * (height // rows)
    if count == 1:
        return _kernel_gradient(outlined, change, size)
    return jnp.sum(lax.map(of_part, jnp.arange(count)), 0)


def _part(images: int, rows: int, most: int) -> tuple[int, int]:
    """Images, and rows of tiles in each: whole images or a part of one, with so many rows in all at most."""
    parts = [(n, rows) for n in range(images, 0, -1) if images % n == 0]
    parts += [(1, n) for n in range(rows, 0, -1) if rows % n == 0]
    return next((part for part in parts if part[0] * part[1] <= most), (1, 1))


def _kernel_gradient(
    outlined: Float[Array, "batch rows width channels"], change: Output, size: int
) -> Kernel:
    """The gradient from images with a row more above and below."""
    dims = ((1,), (1,)), ((0,), (0,))
    pairs = zip(_image_tiles(outlined, size), _change_tiles(change, size), strict=True)
    products = lax.optimization_barrier([lax.dot_general(*pair, dims) for pair in pairs])
    matrix = TRANSFORMS[size].kernel.T
    columns = lax.optimization_barrier([_combine(factors, products) for factors in matrix])
    taps = [[_combine(factors, list(column)) for column in columns] for factors in matrix]
    return jnp.stack([jnp.stack(row) for row in taps])


def _image_tiles(outlined: Image, size: int) -> list[Array]:
    batch, height, width, channels = outlined.shape
    matrix = TRANSFORMS[size].image
    rows, columns = (height - 2) // size, width // size
    lines = _lines(outlined, size, ((0, size - 2), (1, size - 1)))
    line = lax.optimization_barrier(jnp.stack([_combine(factors, lines) for factors in matrix]))
    parts = line.reshape(size + 2, batch * rows, columns + 1, size, channels)
    places = [parts[:, :, k // size : k // size + columns, k % size] for k in range(size + 2)]
    shape = size + 2, batch * rows * columns, channels
    return lax.optimization_barrier([_combine(factors, places).reshape(shape) for factors in matrix])


def _lines(x: Image, size: int, zeros: tuple[tuple[int, int], tuple[int, int]]) -> list[Array]:
    """Of all rows of tiles their first lines, their second, ...; with zeros above and below, and beside."""
    padded = jnp.pad(x, ((0, 0), *zeros, (0, 0)))
    batch, height, width, channels = padded.shape
    rows = height // size - 1
    padded = lax.optimization_barrier(padded.reshape(batch, rows + 1, size, width, channels))
    return [padded[:, k // size : k // size + rows, k % size] for k in range(size + 2)]


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
