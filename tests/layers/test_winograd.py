"""The kernel's gradient by Winograd's algorithm against direct sums in float64 and against XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.layers import winograd


def arrays(batch: int = 4, height: int = 16, width: int = 24, channels: tuple[int, int] = (5, 7)):
    random = np.random.default_rng(0)
    x, change = (random.standard_normal((batch, height, width, c), np.float32) for c in channels)
    kernel = random.standard_normal((3, 3, *channels), np.float32)
    return x, kernel, change


def direct(x: np.ndarray, change: np.ndarray) -> np.ndarray:
    _, height, width, _ = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    return np.array([[np.einsum("bhwi,bhwo->io", view, change) for view in row] for row in views])


@pytest.mark.parametrize(("size", "error"), [(2, 1e-5), (4, 2e-4)])
@pytest.mark.parametrize("part", [2**21, 10_000, 1])
def test_gradient_of_kernel_is_exact(monkeypatch, size, error, part):
    monkeypatch.setattr(winograd, "PART", part)
    x, _, change = arrays()
    expected = direct(x, change)
    found = winograd.kernel_gradient(jnp.asarray(x), jnp.asarray(change), size)
    assert np.max(np.abs(found - expected)) < error * np.std(expected)


@pytest.mark.parametrize("height", [4, 8, 16])
def test_gradients_are_those_of_xla(height):
    x, kernel, change = arrays(height=height)
    x, kernel, change = map(jnp.asarray, (x, kernel, change))
    y, backward = jax.vjp(winograd.conv3x3, x, kernel)
    expected, plain_backward = jax.vjp(winograd._convolve, x, kernel)
    np.testing.assert_array_equal(y, expected)
    for found, right in zip(backward(change), plain_backward(change), strict=True):
        np.testing.assert_allclose(found, right, atol=2e-4 * np.std(right))


def test_small_and_other_convolutions_are_left_to_xla():
    image, kernel = (4, 64, 64, 64), (3, 3, 64, 64)
    assert winograd.is_faster(image, kernel) == (jax.default_backend() == "cpu")
    assert not winograd.is_faster((4, 16, 16, 32), (3, 3, 32, 32))
    assert not winograd.is_faster((4, 66, 64, 64), kernel)
    assert not winograd.is_faster((4, 128, 128, 6), (3, 3, 6, 64))
    assert not winograd.is_faster(image, (1, 1, 64, 64 * 9))
