import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.models import create_model, model_summary
from forestgaps_jax.optimization import (
    CompositeRegularization,
    drop_path_rates,
    drop_path_schedule,
    kernel_mask,
)
from forestgaps_jax.optimization import regularization as room

STRATEGIES = ["linear", "cosine", "exp"]


def rise(strategy, p):
    return {
        "linear": p,
        "cosine": (1 - math.cos(math.pi * p)) / 2,
        "exp": (math.exp(5 * p) - 1) / (math.exp(5) - 1),
    }[strategy]


def drop_rates(strategy, epochs, steps, start=0.0, final=0.2):
    config = Config(
        epochs=epochs, droppath_start_prob=start, droppath_final_prob=final, droppath_strategy=strategy
    )
    return np.asarray(jax.vmap(drop_path_schedule(config, steps))(jnp.arange(epochs * steps + 1)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("epochs", "steps"), [(10, 5), (3, 7), (1, 1)])
def test_drop_path_reaches_its_value_at_80_percent_of_the_batches_fault_11(strategy, epochs, steps):
    rates = drop_rates(strategy, epochs, steps, 0.05, 0.3)
    length = 0.8 * epochs * steps
    expected = [0.05 + 0.25 * rise(strategy, min(batch / length, 1)) for batch in range(len(rates))]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert (rates[math.ceil(length) :] == np.float32(0.3)).all()
    assert (rates[: math.ceil(length)] < 0.3).all()


@settings(max_examples=10, deadline=None)
@given(
    strategy=st.sampled_from(STRATEGIES),
    start=st.floats(0, 1, allow_subnormal=False, width=32),
    final=st.floats(0, 1, allow_subnormal=False, width=32),
    epochs=st.integers(1, 5),
)
def test_drop_path_goes_one_way_and_is_exact_at_both_ends_fault_11(strategy, start, final, epochs):
    rates = drop_rates(strategy, epochs, 10, start, final)
    assert rates[0] == np.float32(start)
    assert rates[-1] == np.float32(final)
    assert (np.diff(rates) * np.sign(final - start) >= -1e-7).all()


def test_drop_path_counts_batches_not_optimizer_steps():
    config = Config(epochs=4, gradient_accumulation_steps=4)
    schedule = drop_path_schedule(config, 10)
    assert float(schedule(31)) < 0.2
    assert float(schedule(32)) == pytest.approx(0.2)


@pytest.mark.parametrize("batch", [3, np.int32(3), np.int64(3), jnp.int32(3)], ids=type)
def test_batches_may_be_python_numpy_or_traced(batch):
    schedule = drop_path_schedule(Config(epochs=2), 5)
    assert float(schedule(batch)) == pytest.approx(0.2 * 3 / 8)
    assert float(jax.jit(schedule)(batch)) == pytest.approx(0.2 * 3 / 8)


def test_an_epoch_without_batches_is_refused():
    with pytest.raises(ValueError, match="steps_per_epoch = 0: must be 1 or more"):
        drop_path_schedule(Config(), 0)


def test_deeper_blocks_drop_more():
    assert drop_path_rates(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert drop_path_rates(1.0, 1) == (1.0,)


@pytest.mark.parametrize(("final", "n"), [(0.2, 0), (1.1, 3), (-0.1, 3), (math.nan, 3)])
def test_rates_of_no_block_or_no_probability_are_refused(final, n):
    with pytest.raises(ValueError, match="must be a rate from 0 to 1, and 1 block or more"):
        drop_path_rates(final, n)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(2, 2, (3, 3), rngs=rngs), nnx.BatchNorm(2, rngs=rngs)
        self.drop_path_rate = 0.7

    def __call__(self, x, rngs):
        keep = jax.random.bernoulli(rngs.drop_path(), 1 - self.drop_path_rate, (len(x), 1, 1, 1))
        return x + self.norm(self.conv(x), use_running_average=True) * keep


class Network(nnx.Module):
    """Blocks with rates of their own, as other libraries have them."""

    def __init__(self, blocks=11):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(rngs) for _ in range(blocks)])
        self.first, self.last = nnx.Dropout(0.5), nnx.Dropout(0.0)

    def __call__(self, x):
        rngs = nnx.Rngs(dropout=1, drop_path=2)
        x = self.first(x, rngs=rngs)
        for block in self.blocks:
            x = block(x, rngs)
        return self.last(x, rngs=rngs)


X = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, (64, 4, 4, 2)), jnp.float32)


def test_dropout_rate_reaches_every_dropout_fault_12():
    network = Network(0)
    CompositeRegularization(network, dropout_rate=0.25)
    assert float(jnp.mean(network(X) == 0)) == pytest.approx(1 - 0.75**2, abs=0.05)
    CompositeRegularization(network, dropout_rate=0.0)
    np.testing.assert_array_equal(network(X), X)


def test_dropout_is_a_tenth_where_there_is_any():
    network = Network(0)
    CompositeRegularization(network)
    assert [network.first.rate, network.last.rate] == [0.1, 0.1]
    CompositeRegularization(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    CompositeRegularization(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), dropout_rate=0.0)


def test_drop_path_rate_reaches_every_block_fault_11_fault_12():
    network = Network(3)
    CompositeRegularization(network, dropout_rate=0.0, drop_path_rate=1.0)
    np.testing.assert_array_equal(network(X), X)
    CompositeRegularization(network, dropout_rate=0.0)
    unchanged = np.asarray(network(X) == X).all(axis=(1, 2, 3))
    assert not unchanged.any()


def test_stochastic_depth_grows_with_depth_fault_12():
    network = Network()
    CompositeRegularization(network, drop_path_rate=0.5, stochastic_depth=True)
    rates = [block.drop_path_rate for block in network.blocks]
    assert rates == pytest.approx([0.5 * (i + 1) / 11 for i in range(11)])
    CompositeRegularization(network, drop_path_rate=0.5)
    assert [block.drop_path_rate for block in network.blocks] == [0.5] * 11


def test_spectral_norm_bounds_every_convolution_fault_12():
    network = Network(2)
    network.blocks[1].conv.kernel[...] *= 1e3
    CompositeRegularization(network, dropout_rate=0.0, spectral_norm=True)
    for block in network.blocks:
        weight = np.asarray(block.conv.kernel[...], np.float64)
        impulse = jnp.zeros((2, 5, 5, 2)).at[[0, 1], 2, 2, [0, 1]].set(1.0)
        response = np.asarray(block.conv(impulse))[:, 1:4, 1:4][:, ::-1, ::-1]  # the kernel that is applied
        expected = weight / np.linalg.norm(weight.reshape(-1, 2), 2)
        np.testing.assert_allclose(response.transpose(1, 2, 0, 3), expected, rtol=1e-3, atol=1e-5)


def steps(transform, params, count=3):
    optimizer = optax.chain(optax.scale_by_adam(), transform, optax.scale_by_learning_rate(0.1))
    state = optimizer.init(params)
    for _ in range(count):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_weight_decay_shrinks_kernels_only_and_never_through_adam_fault_12():
    network = Network(1)
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    params = jax.tree.map(lambda leaf: leaf + 1.0, params)
    regularization = CompositeRegularization(network, weight_decay=0.5)
    after = steps(regularization.weight_decay_transform(), params)
    assert regularization.decay_mask(params) == kernel_mask(params)
    block, still = after["blocks"][0], params["blocks"][0]
    np.testing.assert_allclose(block["conv"]["kernel"], still["conv"]["kernel"] * 0.95**3, rtol=1e-5)
    for layer, name in (("conv", "bias"), ("norm", "scale"), ("norm", "bias")):
        np.testing.assert_array_equal(block[layer][name], still[layer][name])


def test_label_smoothing_moves_targets_towards_one_half_fault_12():
    targets = jnp.array([[0.0, 1.0, 0.25]])
    smoothed = CompositeRegularization(Network(0), label_smoothing=0.2).smooth_labels(targets)
    np.testing.assert_allclose(smoothed, [[0.1, 0.9, 0.3]], rtol=1e-6)
    np.testing.assert_array_equal(CompositeRegularization(Network(0)).smooth_labels(targets), targets)


def test_the_auxiliary_loss_is_the_penalty_fault_12():
    params = {"kernel": jnp.array([[3.0, 4.0]])}
    regularization = CompositeRegularization(Network(0), auxiliary_loss=lambda p: 0.1 * optax.tree.norm(p))
    assert float(regularization.penalty(params)) == pytest.approx(0.5)
    assert jax.grad(regularization.penalty)(params)["kernel"][0, 1] == pytest.approx(0.08)
    assert float(CompositeRegularization(Network(0)).penalty(params)) == 0
    with pytest.raises(ValueError, match=r"shape \(1, 2\): must be a scalar"):
        CompositeRegularization(Network(0), auxiliary_loss=lambda p: p["kernel"]).penalty(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_rate": 0.1}, r"dropout_rate = 0.1: the model has no nnx\.Dropout; build one"),
        ({"drop_path_rate": 0.1}, "drop_path_rate = 0.1: no module of the model has a drop_path_rate; build"),
        ({"spectral_norm": True}, r"the model has no nnx\.Conv"),
        ({"stochastic_depth": True}, "stochastic_depth spreads drop_path_rate = 0"),
        ({"dropout_rate": 1.0}, "dropout_rate = 1.0: must be from 0 to below 1"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0: must be from 0 to below 1"),
        ({"drop_path_rate": 1.1}, "drop_path_rate = 1.1: must be from 0 to 1"),
        ({"drop_path_rate": math.nan}, "drop_path_rate = nan"),
        ({"weight_decay": -1.0}, r"weight_decay = -1.0: must be 0 or more"),
    ],
)
def test_what_cannot_be_applied_is_refused_fault_12(options, message):
    with pytest.raises(ValueError, match=message):
        CompositeRegularization(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), **options)


def test_a_refused_model_stays_as_it_was():
    network = nnx.Sequential(nnx.Dropout(0.5))
    with pytest.raises(ValueError, match="drop_path_rate"):
        CompositeRegularization(network, dropout_rate=0.2, drop_path_rate=0.2)
    assert network.layers[0].rate == 0.5


DSM = jnp.asarray(np.random.default_rng(1).normal(300.0, 5.0, (32, 8, 8, 1)), jnp.float32)


@pytest.fixture(scope="module")
def unet():
    return nnx.split(create_model("unet", rngs=nnx.Rngs(0), features=4, depth=1))


def logits(network):
    """In training, with the same draws every time."""
    graphdef, state = nnx.split(network)

    def forward(state):
        rngs = nnx.Rngs(dropout=0, drop_path=1)
        return nnx.merge(graphdef, state)(DSM, jnp.full(32, 5.0), rngs=rngs, train=True)

    return np.asarray(jax.jit(forward)(state))


@pytest.fixture(scope="module")
def plain_logits(unet):
    return logits(nnx.merge(*unet))


@pytest.mark.parametrize(
    "options", [{"dropout_rate": 0.5}, {"drop_path_rate": 0.5}, {"spectral_norm": True}], ids=str
)
def test_each_option_bites_in_the_networks_of_this_library_fault_12(unet, plain_logits, options):
    network = nnx.merge(*unet)
    CompositeRegularization(network, **({"dropout_rate": 0.0} | options))
    changed = logits(network)
    assert np.isfinite(changed).all()
    assert np.abs(changed - plain_logits).max() > 1e-3


def test_depth_is_shared_out_in_the_networks_of_this_library_fault_11(unet):
    network = nnx.merge(*unet)
    CompositeRegularization(network, drop_path_rate=0.4, stochastic_depth=True)
    assert network.drop_path_rate == 0.4
    shares = {path: block.share for path, block in nnx.iter_modules(network) if hasattr(block, "share")}
    assert max(shares, key=shares.__getitem__)[0] == "bottom"
    assert len(set(shares.values())) == 2
    CompositeRegularization(network, drop_path_rate=0.4)
    assert {block.share for _, block in nnx.iter_modules(network) if hasattr(block, "share")} == {1.0}


def test_the_names_of_the_original_are_where_it_had_them():
    assert {"CompositeRegularization", "GradientClipping"} <= set(vars(room))


def test_the_summary_tells_the_spectral_norm_that_was_put_on_and_the_repr_is_short():
    network = create_model("unet", rngs=nnx.Rngs(0), features=2, depth=1)
    assert "of every convolution" not in model_summary(network, (1, 8, 8, 1))
    regularization = CompositeRegularization(network, spectral_norm=True)
    assert "of every convolution" in model_summary(network, (1, 8, 8, 1))
    assert "spectral_norm=True" in repr(regularization)
    assert "UNet" not in repr(regularization)
