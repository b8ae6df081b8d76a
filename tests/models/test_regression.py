"""The network that predicts heights."""

import jax
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.models import RegressionUNet, create_model
from tests.models.networks import DSM, THRESHOLD, compiled, small


@compiled
def heights_of(params, rest, dsm):
    return nnx.merge(small("unet_regression").graph, params, rest)(dsm)


def test_without_a_threshold_it_gives_heights_and_with_one_the_metres_below_it():
    network = small("unet_regression")
    heights = heights_of(network.params, network.rest, DSM)
    assert heights.dtype == np.float32
    logits = network.logits()
    np.testing.assert_allclose(logits, THRESHOLD[:, None, None, None] - heights, atol=1e-5)
    np.testing.assert_array_equal(logits > 0, heights < THRESHOLD[:, None, None, None])


def test_heights_are_the_head_in_units_of_height_scale():
    network = small("unet_regression")
    params = jax.tree.map(np.zeros_like, network.params)
    params["head"]["bias"] = np.float32([1.7])
    np.testing.assert_allclose(heights_of(params, network.rest, DSM), 17.0, rtol=1e-6)


def test_no_threshold_enters_the_network():
    assert RegressionUNet(rngs=nnx.Rngs(0), features=2, depth=1).embed is None
    with pytest.raises(TypeError, match="film"):
        create_model("unet_regression", rngs=nnx.Rngs(0), film=True)
