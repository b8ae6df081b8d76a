"""Convolutions and kernels' gradients by Winograd's algorithm against direct sums in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.layers import winograd


def arrays(batch: int = 4, height: int = 16, width: int = 24, channels: tuple[int, int] = (5, 7)):
    random = np.random.default_rng(0)
    x, change = (random.standard_normal((batch, height, width, c), np.float32) for c in channels)
    kernel = random.standard_normal((3, 3, *channels), np.float32)
    return x, kernel, change


def shifted(x: np.ndarray) -> list[list[np.ndarray]]:
    _, height, width, _ = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    views, taps = shifted(x), np.ndindex(3, 3)
    return np.sum([np.einsum("bhwi,io->bhwo", views[i][j], kernel[i, j]) for i, j in taps], axis=0)


@pytest.mark.parametrize("height", [4, 8, 20])
def test_convolution_is_exact(height):
    x, kernel, _ = arrays(height=height, width=7)
    expected = convolved(x, kernel)
    found = winograd.convolve(jnp.asarray(x), winograd.row_taps(jnp.asarray(kernel)))
    assert np.max(np.abs(found - expected)) < 1e-5 * np.std(expected)


def direct(x: np.ndarray, change: np.ndarray) -> np.ndarray:
    return np.array([[np.einsum("bhwi,bhwo->io", view, change) for view in row] for row in shifted(x)])


@pytest.mark.parametrize(("size", "error"), [(2, 1e-5), (4, 2e-4)])
@pytest.mark.parametrize("part", [2**21, 10_000, 2_000, 1])
def test_gradient_of_kernel_is_exact(monkeypatch, size, error, part):
    monkeypatch.setattr(winograd, "PART", part)
    x, _, change = arrays()
    expected = direct(x, change)
    found = winograd.kernel_gradient(jnp.asarray(x), jnp.asarray(change), size)
    assert np.max(np.abs(found - expected)) < error * np.std(expected)
