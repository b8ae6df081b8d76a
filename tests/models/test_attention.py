"""Attention against the formulas of the papers, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.signal import correlate
from scipy.special import expit

from forestgaps_jax.layers.conv import Layers
from forestgaps_jax.models.attention import CBAM, AttentionGate, mean_of_known

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 8, 4)).astype(np.float32)
KNOWN = RNG.uniform(size=(2, 6, 8, 1)) < 0.6
FIRST_ONLY = KNOWN & (np.arange(2) == 0)[:, None, None, None]


def layers():
    return Layers(nnx.Rngs(0))


def test_gate_weighs_places_by_what_skip_and_level_below_agree_on():
    gate = AttentionGate(4, 6, layers())
    gate.below.bias[...] = jnp.asarray([0.3, -0.2])
    below = RNG.normal(size=(2, 3, 4, 6)).astype(np.float32)
    squares = X.reshape(2, 3, 2, 4, 2, 4)
    theta = np.einsum("bhiwjc,ijcd->bhwd", squares, gate.skip.kernel[...])
    phi = below @ np.asarray(gate.below.kernel[...])[0, 0] + gate.below.bias[...]
    psi = expit(np.maximum(theta + phi, 0) @ np.asarray(gate.weigh.kernel[...])[0, 0])
    expected = X * jax.image.resize(psi, (2, 6, 8, 1), "bilinear")
    np.testing.assert_allclose(nnx.jit(AttentionGate.__call__)(gate, X, below), expected, atol=1e-5)


def cbam_oracle(cbam, x, known):
    """Woo et al. 2018, equations 2 and 3, over known pixels."""
    weights = [np.asarray(v, np.float64) for v in (cbam.hidden.kernel[...], cbam.out.kernel[...])]
    place = np.asarray(cbam.place.kernel[...], np.float64)[..., 0]
    out = np.zeros(x.shape)
    for sample, seen, result in zip(x.astype(np.float64), known[..., 0], out, strict=True):
        pixels = sample[seen] if seen.any() else np.zeros((1, x.shape[-1]))
        pooled = np.stack([pixels.mean(0), pixels.max(0)])
        channels = expit((np.maximum(pooled @ weights[0], 0) @ weights[1]).sum(0))
        weighed = np.where(seen[..., None], sample, 0) * channels
        over = np.stack([weighed.mean(-1), weighed.max(-1)], -1)
        padded = np.pad(over, ((3, 3), (3, 3), (0, 0)))
        result[:] = weighed * expit(correlate(padded, place, "valid"))
    return out


@pytest.mark.parametrize(
    "known", [np.ones_like(KNOWN), KNOWN, KNOWN & (np.arange(2) == 0)[:, None, None, None]]
)
def test_cbam_is_that_of_the_paper_over_known_pixels(known):
    cbam = CBAM(4, layers())
    got = nnx.jit(CBAM.__call__)(cbam, np.where(known, X, 1e4), known)
    np.testing.assert_allclose(got, cbam_oracle(cbam, X, known), atol=1e-5)


def test_cbam_without_a_known_pixel_has_a_finite_gradient():
    cbam = CBAM(4, layers())
    grad = jax.jit(jax.grad(lambda x: cbam(x, jnp.zeros(KNOWN.shape, bool)).sum()))(X)
    np.testing.assert_array_equal(grad, np.zeros_like(X))


def test_mean_of_known_is_in_float32_and_0_where_nothing_is_known():
    x = jnp.asarray(X + 300, jnp.bfloat16)
    known = KNOWN.copy()
    known[1] = False
    got = mean_of_known(x, jnp.asarray(known))
    assert got.dtype == jnp.float32
    expected = np.asarray(x, np.float64)[0][known[0, ..., 0]].mean(0)
    np.testing.assert_allclose(got, [expected, np.zeros(4)], rtol=1e-6)
