"""3x3 convolutions in bfloat16 as products of matrices, for processors that have units for these.

XLA computes convolutions in bfloat16 for CPUs in float32; its products of matrices reach the units. One
product gives what the three pixels around each place in its row say to the rows above, at and below it.
Another gives the gradient of the kernel. bfloat16 is moved as integers: XLA moves it in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float32, UInt16

Image = BFloat16[Array, "batch height width channels"]
Output = BFloat16[Array, "batch height width channels_out"]
Kernel = BFloat16[Array, "3 3 channels channels_out"]
Matrix = BFloat16[Array, "rows columns"]

PART = 2**26
"""Numbers that a product is made of, or gives, at once: 256 MB of float32; but an image at least."""


@jax.custom_vjp
def conv3x3_bfloat16(x: Image, kernel: Kernel) -> Output:
    """Convolve with zeros around; multiplied in bfloat16, added in float32, rounded at the end."""
    return _convolve(x, _matrix(kernel, (1, 2, 0, 3)))


def _forward(x: Image, kernel: Kernel) -> tuple[Output, tuple[Image, Kernel]]:
    return conv3x3_bfloat16(x, kernel), (x, kernel)


def _backward(saved: tuple[Image, Kernel], change: Output) -> tuple[Image, Kernel]:
    x, kernel = saved
    of_image = _convolve(change, _matrix(kernel[::-1, ::-1], (1, 3, 0, 2)))
    of_kernel = jnp.sum(_in_parts(_kernel_gradient, x, change), 0)
    # As in conv3x3: no kernel's gradient waits.
    return lax.optimization_barrier((of_image, of_kernel.astype(kernel.dtype)))


conv3x3_bfloat16.defvjp(_forward, _backward)


def _matrix(kernel: Kernel, axes: tuple[int, int, int, int]) -> Matrix:
    """The kernel from the channels of three columns to those of three rows."""
    turned = _numbers(lax.optimization_barrier(_bits(kernel).transpose(axes)))
    return turned.reshape(3 * turned.shape[1], -1)


def _convolve(x: Image, matrix: Matrix) -> Output:
    batch, height, width, _ = x.shape

    def of_images(x: Image) -> Output:
        said = _product(_beside(x), matrix).reshape(-1, height + 2, width, 3, matrix.shape[1] // 3)
        said = lax.optimization_barrier(said)
        rows = [said[:, row : row + height, :, row] for row in range(3)]
        return (rows[0] + rows[1] + rows[2]).astype(x.dtype)

    return _in_parts(of_images, x, widest=matrix.shape[1] // 3).reshape(batch, height, width, -1)


def _kernel_gradient(x: Image, change: Output) -> Float32[Array, "3 3 channels channels_out"]:
    """What comes from some images."""
    batch, height, width, channels = change.shape
    turned = lax.optimization_barrier(_bits(change).reshape(-1, channels).T)
    outlined = jnp.pad(turned.reshape(channels, batch, height, width), ((0, 0), (0, 0), (2, 2), (0, 0)))
    outlined = lax.optimization_barrier(outlined)
    rows = jnp.stack([outlined[:, :, 2 - row : height + 4 - row] for row in range(3)])
    rows = _numbers(lax.optimization_barrier(rows.reshape(3 * channels, -1)))
    return _product(rows, _beside(x)).reshape(3, channels, 3, -1).transpose(0, 2, 3, 1)


def _beside(x: Image) -> Matrix:
    """Of each pixel, in a row more above and below too, the channels of the three around it in its row."""
    padded = lax.optimization_barrier(jnp.pad(_bits(x), ((0, 0), (1, 1), (1, 1), (0, 0))))
    columns = jnp.stack([padded[:, :, column : column + x.shape[2]] for column in range(3)], 3)
    return _numbers(lax.optimization_barrier(columns)).reshape(-1, 3 * x.shape[3])


def _in_parts(function: Callable[..., Array], *images: Array, widest: int = 0) -> Array:
    """Stack what the function gives of as many images at once as `PART` allows."""
    batch, height, width, _ = images[0].shape
    most = PART // (3 * (height + 2) * width * max(widest, *(image.shape[3] for image in images)))
    count = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(most, 1))
    if count == batch:
        return function(*images)[None]
    parts = [image.reshape(-1, count, *image.shape[1:]) for image in images]
    return lax.map(lambda part: function(*part), parts)


def _product(
    left: BFloat16[Array, "rows terms"], right: BFloat16[Array, "terms columns"]
) -> Float32[Array, "rows columns"]:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _bits(x: BFloat16[Array, "..."]) -> UInt16[Array, "..."]:
    return lax.bitcast_convert_type(x, jnp.uint16)


def _numbers(bits: UInt16[Array, "..."]) -> BFloat16[Array, "..."]:
    return lax.bitcast_convert_type(bits, jnp.bfloat16)
