"""Convolutions whose kernel has spectral norm 1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_SQUARINGS = 9
"""The largest singular value of a random kernel is then right to less than a thousandth."""


def convolutions(model: nnx.Module) -> list[Any]:
    """The layers of a model that `normalize_kernel` is for.

    Raises:
        ValueError: there is none.
    """
    modules = [module for _, module in nnx.iter_modules(model)]
    found = [m for m in modules if isinstance(m, nnx.Conv | nnx.ConvTranspose) or hasattr(m, "direction")]
    if not found:
        raise ValueError("spectral_norm = True: the model has no nnx.Conv or nnx.ConvTranspose; leave it out")
    return found


def normalize_kernel(layer: Any) -> None:
    """Let a convolution divide its kernel by its largest singular value at every call; twice is once.

    The parameter stays as it is. The convolutions of this library's networks know how, and follow the
    ``direction`` of the largest singular value, which is None where they do not; those of flax are given a
    `SpectralPromotion`.
    """
    if not hasattr(layer, "direction"):
        if not isinstance(layer.promote_dtype, SpectralPromotion):
            layer.promote_dtype = SpectralPromotion(layer.promote_dtype)
    elif layer.direction is None:
        layer.direction = nnx.data(nnx.BatchStat(_right_vector(_matrix(layer.kernel[...]))))


def spectral_norm(kernel: Float[Array, "*inputs outputs"]) -> Float[Array, ""]:
    """Largest singular value of a kernel as the matrix ``[inputs, outputs]``.

    By power iteration from a fixed start, 2^9 steps at once through squaring the smaller Gram matrix: no
    state is kept. The gradient goes through the kernel and not through the singular vectors.

    Source: Miyato et al. 2018, Spectral Normalization for GANs, arXiv:1802.05957.

    >>> print(f"{spectral_norm(jnp.diag(jnp.array([3.0, -4.0]))):.3f}")
    4.000
    """
    matrix = _matrix(kernel)
    fixed = jax.lax.stop_gradient(matrix)
    right = _right_vector(fixed)
    return _dot(_unit(_dot(fixed, right)), _dot(matrix, right))


@dataclass(frozen=True)
class SpectralPromotion:
    """A layer's ``promote_dtype`` that first divides the kernel by its largest singular value.

    A kernel of zeros stays.

    Args:
        promote: what the layer had, called as ``promote((inputs, kernel, bias), dtype=...)``.
    """

    promote: Callable[..., Any]

    def __call__(self, arrays: Sequence[Any], /, **options: Any) -> Any:
        """The promoted arrays."""
        inputs, kernel, bias = arrays
        norm = spectral_norm(kernel)
        return self.promote((inputs, kernel / jnp.where(norm > 0, norm, 1.0), bias), **options)


def _matrix(kernel: Array) -> Array:
    return kernel.reshape(-1, kernel.shape[-1])


@jax.jit
def _right_vector(matrix: Array) -> Array:
    """The first right singular vector."""
    matrix = _scaled(matrix)  # squares of small and of large numbers leave float32
    wide = matrix.shape[0] < matrix.shape[1]
    power = _unit(_dot(matrix, matrix.T) if wide else _dot(matrix.T, matrix))
    for _ in range(_SQUARINGS):
        power = _unit(_dot(power, power))
    vector = _dot(power, jax.random.normal(jax.random.key(0), power.shape[:1], power.dtype))
    return _unit(_dot(vector, matrix) if wide else vector)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")  # squaring would pile up the rounding of bfloat16


def _scaled(array: Array) -> Array:
    return array / jnp.maximum(jnp.max(jnp.abs(array)), jnp.finfo(array.dtype).tiny)


def _unit(array: Array) -> Array:
    return array / jnp.maximum(jnp.linalg.norm(array), jnp.finfo(array.dtype).tiny)
