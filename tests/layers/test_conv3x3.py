"""The 3x3 convolution of CPUs against XLA's own, in all passes, and where each algorithm is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.layers.conv3x3 import conv3x3, faster_conv3x3
from forestgaps_jax.layers.winograd import xla_convolve
from tests.layers.test_winograd import arrays


@pytest.mark.parametrize("sides", [(4, 16), (8, 16), (16, 16), (8, 8), (4, 8)], ids=str)
@pytest.mark.parametrize("channels", [(5, 7), (32, 33)], ids=str)
def test_all_passes_are_those_of_xla(sides, channels):
    x, kernel, change = map(jnp.asarray, arrays(2, *sides, channels))
    y, backward = jax.vjp(conv3x3, x, kernel)
    expected, plain_backward = jax.vjp(xla_convolve, x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.std(expected))
    for found, right in zip(backward(change), plain_backward(change), strict=True):
        np.testing.assert_allclose(found, right, atol=2e-4 * np.std(right))


def count(function, *shapes: tuple[int, ...]) -> int:
    """How many convolutions a function of arrays of these shapes is made of."""
    return str(jax.make_jaxpr(function)(*map(jnp.zeros, shapes))).count("conv_general_dilated[")


def gradient(x, kernel):
    return jax.grad(lambda x: conv3x3(x, kernel).sum())(x)


@pytest.mark.parametrize(
    ("side", "channels", "forward", "backward"),
    [
        (16, 64, 6, 12),
        (64, 64, 6, 12),
        (128, 64, 6, 12),
        (128, 32, 6, 12),
        (256, 64, 6, 12),
        (256, 32, 1, 2),
        (64, 16, 1, 2),
        (8, 64, 1, 1),
    ],
)
def test_rows_are_taken_where_they_are_faster(side, channels, forward, backward):
    shapes = (1, side, side, 32), (3, 3, 32, channels)
    assert count(conv3x3, *shapes) == forward
    assert count(gradient, *shapes) == backward


def test_small_and_other_convolutions_are_left_to_xla():
    image, kernel = (4, 64, 64, 64), (3, 3, 64, 64)
    chosen = conv3x3 if jax.default_backend() == "cpu" else None
    assert faster_conv3x3(image, kernel, "float32") is chosen
    others = {
        "too small": ((4, 16, 16, 32), (3, 3, 32, 32)),
        "no tiles of 4 px": ((4, 66, 64, 64), kernel),
        "few channels": ((4, 128, 128, 6), (3, 3, 6, 64)),
        "1 x 1": (image, (1, 1, 64, 64 * 9)),
    }
    assert {why: faster_conv3x3(*shapes, jnp.float32) for why, shapes in others.items()} == dict.fromkeys(
        others
    )
