"""`Norm` against flax where every pixel is known, and against float64 NumPy where not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.layers.norm import AdaptiveNorm, Norm, choose_norm

SHAPE = (3, 4, 5, 6)
RNG = np.random.default_rng(0)
X = RNG.normal(1.5, 2.0, SHAPE).astype(np.float32)
ALL = np.ones((*SHAPE[:3], 1), bool)
SOME = RNG.uniform(size=ALL.shape) < 0.6
SCALE, BIAS = RNG.uniform(0.5, 2, SHAPE[-1]).astype(np.float32), RNG.normal(size=SHAPE[-1]).astype(np.float32)


def with_weights(layer):
    if layer.scale.shape == SCALE.shape:
        layer.scale[...], layer.bias[...] = jnp.asarray(SCALE), jnp.asarray(BIAS)
    return layer


def make(kind, channels=SHAPE[-1]):
    return with_weights(Norm(channels, kind, rngs=nnx.Rngs(0)))


def call(norm, x=X, known=ALL, **options):
    modulation = options.pop("modulation", None)
    return np.asarray(norm(jnp.asarray(x), jnp.asarray(known), modulation, **options))


def test_batch_norm_is_that_of_flax_in_training_and_after():
    ours = make("batch")
    flax = with_weights(nnx.BatchNorm(SHAPE[-1], momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0)))
    for number in range(3):
        x = X + number
        expected = flax(jnp.asarray(x), use_running_average=False)
        np.testing.assert_allclose(call(ours, x, train=True), expected, atol=2e-5)
        np.testing.assert_allclose(ours.mean[...], flax.mean[...], rtol=1e-5)
        np.testing.assert_allclose(ours.var[...], flax.var[...], rtol=1e-5)
    np.testing.assert_allclose(call(ours), flax(jnp.asarray(X), use_running_average=True), atol=2e-5)


@pytest.mark.parametrize("channels", [6, 8, 12, 20])
def test_group_norm_is_that_of_flax_with_the_same_groups(channels):
    ours = make("group", channels)
    assert ours.groups == {6: 6, 8: 8, 12: 6, 20: 5}[channels]
    flax = with_weights(nnx.GroupNorm(channels, num_groups=ours.groups, epsilon=1e-5, rngs=nnx.Rngs(0)))
    x = RNG.normal(1.5, 2.0, (*SHAPE[:3], channels)).astype(np.float32)
    np.testing.assert_allclose(call(ours, x), flax(jnp.asarray(x)), atol=2e-5)


def test_group_norm_averages_over_whole_groups():
    x = np.concatenate([X, X * 3 + 5], axis=-1)  # 12 channels, 6 groups of 2
    got = call(make("group", 12), x)
    grouped = x.astype(np.float64).reshape(*SHAPE[:3], 6, 2)
    mean, var = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    np.testing.assert_allclose(got, ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape), atol=2e-5)


def moments(x, known, axes):
    values = np.ma.masked_array(x.astype(np.float64), ~np.broadcast_to(known, x.shape))
    return (np.asarray(f(values, axis=axes, keepdims=True)) for f in (np.ma.mean, np.ma.var))


@pytest.mark.parametrize(("kind", "axes"), [("batch", (0, 1, 2)), ("group", (1, 2))])
def test_statistics_are_of_known_pixels_only(kind, axes):
    norm = make(kind)
    mean, var = moments(X, SOME, axes)  # 6 groups of one channel
    expected = (X - mean) / np.sqrt(var + 1e-5) * SCALE + BIAS
    wild = np.where(SOME, X, 1e4)
    got = call(norm, wild, SOME, train=True)
    seen = np.broadcast_to(SOME, SHAPE)
    np.testing.assert_allclose(got[seen], expected[seen], atol=2e-5)
    if kind == "batch":
        np.testing.assert_allclose(norm.mean[...], 0.1 * mean.ravel(), rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var.ravel(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_nothing_known_is_finite_and_leaves_running_statistics(kind):
    norm = make(kind)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)))
    assert np.isfinite(call(norm, known=np.zeros_like(ALL), train=True)).all()
    after = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_evaluation_uses_running_statistics_and_leaves_them():
    norm = make("batch")
    norm.mean[...], norm.var[...] = jnp.full(6, 2.0), jnp.full(6, 9.0)
    expected = SOME * ((X.astype(np.float64) - 2) / np.sqrt(9 + 1e-5) * SCALE + BIAS)
    np.testing.assert_allclose(call(norm, known=SOME), expected, atol=1e-5)
    assert np.asarray(norm.mean[...]).tolist() == [2.0] * 6
    assert np.asarray(norm.var[...]).tolist() == [9.0] * 6


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_modulation_follows_the_affine_weights(kind):
    gain, shift = (RNG.normal(size=(3, 1, 1, 6)).astype(np.float32) for _ in range(2))
    plain = call(make(kind), train=True)
    got = call(make(kind), train=True, modulation=(jnp.asarray(gain), jnp.asarray(shift)))
    np.testing.assert_allclose(got, plain * gain + shift, atol=3e-5)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_half_precision_features_have_float32_statistics(kind):
    norm = Norm(SHAPE[-1], kind, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(X + 100, jnp.bfloat16)
    got = norm(x, jnp.asarray(ALL), train=True)
    assert got.dtype == jnp.bfloat16
    mean, var = moments(np.asarray(x, np.float32), ALL, (0, 1, 2) if kind == "batch" else (1, 2))
    expected = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=2e-2)
    state = jax.tree.leaves(nnx.state(norm))
    assert {leaf.dtype for leaf in state} == {jnp.dtype("float32")}
    if kind == "batch":
        np.testing.assert_allclose(norm.mean[...], 0.1 * mean.ravel(), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "batch_size", "chosen"),
    [
        ("adaptive", 1, "group"),
        ("adaptive", 15, "group"),
        ("adaptive", 16, "batch"),
        ("adaptive", 64, "batch"),
        ("batch", 1, "batch"),
        ("group", 64, "group"),
        ("batch", None, "batch"),
    ],
)
def test_adaptive_is_batch_norm_from_16_samples_on(kind, batch_size, chosen):
    assert choose_norm(kind, batch_size) == chosen
    if kind == "adaptive":
        norm = AdaptiveNorm(20, batch_size, rngs=nnx.Rngs(0))
        assert isinstance(norm, Norm)
        assert norm.kind == chosen


@pytest.mark.parametrize("batch_size", [8, 16])
def test_fault_10_a_small_batch_or_evaluation_does_not_change_the_adaptive_branch(batch_size):
    """A training batch, a last batch of one, and evaluation: always what the chosen norm gives."""
    adaptive = with_weights(AdaptiveNorm(SHAPE[-1], batch_size, rngs=nnx.Rngs(0)))
    chosen = make("batch" if batch_size == 16 else "group")
    for samples, train in ((3, True), (1, True), (3, False), (1, False)):
        got, expected = (call(norm, X[:samples], ALL[:samples], train=train) for norm in (adaptive, chosen))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("channels", [1, 6, 7, 11, 20])
def test_fault_10_groups_divide_any_number_of_channels(channels):
    norm = AdaptiveNorm(channels, 8, rngs=nnx.Rngs(0))
    assert channels % norm.groups == 0
    shape = (2, 4, 4, channels)
    assert jax.eval_shape(norm, jnp.zeros(shape), jnp.ones((2, 4, 4, 1), bool)).shape == shape


def test_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="norm = 'layer': must be 'batch', 'group' or 'adaptive'"):
        choose_norm("layer")


@pytest.mark.parametrize("batch_size", [None, 0])
def test_adaptive_without_a_batch_size_is_an_error(batch_size):
    with pytest.raises(ValueError, match=f"batch_size = {batch_size}: must be 1 or more"):
        AdaptiveNorm(4, batch_size, rngs=nnx.Rngs(0))
