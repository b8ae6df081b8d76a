"""The two blocks against flax's layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.layers.conv import Layers
from forestgaps_jax.models.blocks import ConvBlock, ResidualBlock

X = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
ALL = jnp.ones((2, 6, 8, 1), bool)
SOME = np.random.default_rng(1).uniform(size=ALL.shape) < 0.6


@nnx.jit(static_argnames="train")
def apply(block, x, known=ALL, **options):
    return block(x, known, **options)


@nnx.jit
def convolved(conv, x):
    size = conv.kernel.shape[:2]
    flax = nnx.Conv(*conv.kernel.shape[2:], size, use_bias=False, rngs=nnx.Rngs(0))
    flax.kernel[...] = conv.kernel[...]
    # Running statistics of a new BatchNorm: mean 0, variance 1.
    return flax(x) / np.sqrt(1 + 1e-5)


def test_plain_block_adds_its_second_convolution_to_the_first():
    block = ConvBlock(3, 4, Layers(nnx.Rngs(0)))
    first = jax.nn.relu(convolved(block.conv1, X))
    expected = first + jax.nn.relu(convolved(block.conv2, first))
    np.testing.assert_allclose(apply(block, X), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 4])
def test_residual_block_adds_both_to_its_input_projected_where_channels_change(channels):
    block = ResidualBlock(3, channels, Layers(nnx.Rngs(0)))
    assert (block.project is None) == (channels == 3)
    branch = convolved(block.conv2, jax.nn.relu(convolved(block.conv1, X)))
    shortcut = X if block.project is None else convolved(block.project, X)
    expected = jax.nn.relu(shortcut + branch)
    np.testing.assert_allclose(apply(block, X), expected, atol=1e-5)


@pytest.mark.parametrize("cbam", [False, True])
def test_fault_11_rate_1_leaves_what_the_branch_is_added_to(cbam):
    rngs = nnx.Rngs(drop_path=0)
    block = ResidualBlock(3, 3, Layers(nnx.Rngs(0)), cbam=cbam)
    got = apply(block, X, rngs=rngs, train=True, drop_path_rate=1.0)
    np.testing.assert_array_equal(got, np.maximum(X, 0))


def test_the_share_of_a_block_scales_the_rate():
    block = ResidualBlock(3, 3, Layers(nnx.Rngs(0), norm="group"), share=0.5)
    x, known = jnp.asarray(np.repeat(X, 200, axis=0)), jnp.ones((400, 6, 8, 1), bool)
    got = apply(block, x, known, rngs=nnx.Rngs(drop_path=0), train=True, drop_path_rate=0.6)
    dropped = (np.asarray(got) == np.maximum(x, 0)).all(axis=(1, 2, 3)).mean()
    assert abs(dropped - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 400)


@pytest.mark.parametrize("kind", [ConvBlock, ResidualBlock])
def test_unknown_pixels_come_out_0_and_give_no_statistics(kind):
    """Neighbours do see the zeros that `normalize_height` puts there, so they stay zeros here."""
    outputs, states = [], []
    for wild in (0.0, 1e4):
        block = kind(4, 4, Layers(nnx.Rngs(0)), cbam=True)
        x = np.where(SOME, np.concatenate([X, X[..., :1]], -1), 0).astype(np.float32)
        modulation = (jnp.full((2, 1, 1, 4), 1.5), jnp.full((2, 1, 1, 4), wild))
        outputs.append(np.asarray(apply(block, x, SOME, steer=(None, modulation), train=True)))
        states.append(jax.tree.leaves(nnx.state(block, nnx.BatchStat)))
    for output in outputs:
        assert not output[np.broadcast_to(~SOME, output.shape)].any()
        assert output[np.broadcast_to(SOME, output.shape)].any()
    assert all((a == b).all() for a, b in zip(*states, strict=True))
