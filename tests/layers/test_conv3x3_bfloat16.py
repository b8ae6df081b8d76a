"""The 3x3 convolution in bfloat16 by products, against direct sums in float64, and where it is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.compilation import jit
from forestgaps_jax.layers import conv3x3, conv3x3_bfloat16
from forestgaps_jax.layers.conv import Conv
from tests.layers.test_winograd import arrays, convolved, direct

SIDES = 9, 14


def passes(x, kernel, change):
    """The output, and the gradients of image and kernel."""
    y, backward = jax.vjp(conv3x3_bfloat16.conv3x3_bfloat16, x, kernel)
    return y, *backward(change)


def exact(x, kernel, change) -> list[np.ndarray]:
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return [convolved(x, kernel), convolved(change, turned), direct(x, change)]


@pytest.mark.parametrize("images", [4, 2, 1, 0])
def test_all_passes_are_exact_but_for_one_rounding(monkeypatch, images):
    monkeypatch.setattr(conv3x3_bfloat16, "PART", images * 3 * (SIDES[0] + 2) * SIDES[1] * 7)
    given = [jnp.asarray(array, jnp.bfloat16) for array in arrays(4, *SIDES, (5, 7))]
    expected = exact(*(np.asarray(array, np.float64) for array in given))
    for found, right in zip(jit(passes)(*given), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.abs(np.asarray(found, np.float64) - right)
        assert np.all(error <= 2.0**-8 * np.abs(right) + 1e-5 * np.std(right))


def test_images_at_once_are_as_many_as_fit(monkeypatch):
    """What is held at once is part of the images, and none is left out."""
    counts = []

    def note(images):
        counts.append(len(images))
        return images

    monkeypatch.setattr(conv3x3_bfloat16, "PART", 3 * 3 * 6 * 4 * 2)
    images = jnp.zeros((8, 4, 4, 2), jnp.bfloat16)
    assert conv3x3_bfloat16._in_parts(note, images).shape == (4, 2, 4, 4, 2)
    assert set(counts) == {2}


@pytest.mark.parametrize("able", [True, False])
def test_it_is_taken_where_the_processor_multiplies_bfloat16(monkeypatch, able):
    monkeypatch.setattr(conv3x3, "multiplies_bfloat16", lambda: able)
    on_cpu = jax.default_backend() == "cpu"
    chosen = conv3x3_bfloat16.conv3x3_bfloat16 if able and on_cpu else None
    image, kernel = (4, 66, 64, 64), (3, 3, 64, 64)
    assert conv3x3.faster_conv3x3(image, kernel, "bfloat16") is chosen
    assert conv3x3.faster_conv3x3(image, kernel, jnp.bfloat16) is chosen
    assert conv3x3.faster_conv3x3((4, 16, 16, 32), (3, 3, 32, 32), jnp.bfloat16) is None
    assert conv3x3.faster_conv3x3((4, 128, 128, 6), (3, 3, 6, 64), jnp.bfloat16) is None


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPUs")
@pytest.mark.parametrize(
    ("options", "convolutions"),
    [({}, 0), ({"stride": 2}, 1), ({"dilation": 2}, 1), ({"exact": True}, 1)],
    ids=str,
)
def test_a_layer_takes_it_where_its_taps_are_neighbours(monkeypatch, options, convolutions):
    monkeypatch.setattr(conv3x3, "multiplies_bfloat16", lambda: True)
    conv = Conv(64, 64, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0), **options)
    jaxpr = str(jax.make_jaxpr(conv)(jnp.zeros((4, 64, 64, 64))))
    assert jaxpr.count("conv_general_dilated[") == convolutions
