from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forestgaps_jax import Batch, Config, TrainState, create_state, evaluate, predict
from forestgaps_jax.data import create_data
from forestgaps_jax.loss import BCELoss, MAELoss, create_loss_function, weigh_by_threshold
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import make_eval_step, make_train_step, predict_step, train_step
from forestgaps_jax.totals import Totals

THRESHOLDS = (5.0, 15.0)
PLAIN = replace(make_recipe(Config(thresholds=THRESHOLDS, loss_type="bce"), 5), optimizer=optax.sgd(0.1))


def linear(params, model_state, dsm, threshold, rngs=None, train=False):
    """A model of two weights, without a library."""
    return params["w"] * dsm + params["b"] * threshold[:, None, None, None], model_state


@pytest.fixture
def state() -> TrainState:
    params = {"w": jnp.array(0.3), "b": jnp.array(-0.2)}
    return TrainState(
        jnp.zeros((), jnp.int32), params, {}, optax.sgd(0.1).init(params), jax.random.key(0), linear
    )


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(0)
    dsm = rng.normal(size=(3, 4, 4, 1)).astype(np.float32)
    return Batch(
        jnp.asarray(dsm),
        jnp.asarray(rng.random(dsm.shape) < 0.4, jnp.float32),
        jnp.array([5.0, 15.0, 7.0]),
        jnp.asarray(rng.random(dsm.shape) < 0.8),
    )


def test_one_step_equals_gradient_descent_in_numpy(state, batch):
    step = train_step(PLAIN)
    new, totals, logs = step(state, Totals.zeros(THRESHOLDS), batch)

    dsm, mask, valid = (np.asarray(x, np.float64) for x in (batch.dsm, batch.mask, batch.valid))
    height = np.broadcast_to(np.asarray(batch.threshold)[:, None, None, None], dsm.shape)
    p = 1 / (1 + np.exp(-(0.3 * dsm - 0.2 * height)))
    residual = (p - mask) * valid / valid.sum()
    gradient = np.array([(residual * dsm).sum(), (residual * height).sum()])
    loss = -np.sum(valid * (mask * np.log(p) + (1 - mask) * np.log(1 - p))) / valid.sum()

    np.testing.assert_allclose(logs.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(logs.grad_norm, np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(new.params["w"], 0.3 - 0.1 * gradient[0], rtol=1e-5)
    np.testing.assert_allclose(new.params["b"], -0.2 - 0.1 * gradient[1], rtol=1e-5)
    np.testing.assert_allclose(totals.loss / totals.pixels, loss, rtol=1e-5)
    assert int(new.step) == 1


def test_totals_count_each_threshold_and_the_unlisted_one_apart(state, batch):
    totals, _ = make_eval_step(BCELoss(), THRESHOLDS)(state, Totals.zeros(THRESHOLDS), batch, np.int32(0))
    logits = 0.3 * np.asarray(batch.dsm) - 0.2 * np.asarray(batch.threshold)[:, None, None, None]
    found, gap, valid = logits > 0, np.asarray(batch.mask) > 0.5, np.asarray(batch.valid)
    cells = (found & gap, found & ~gap, ~found & gap, ~found & ~gap)
    expected = np.stack([[np.sum(c[i] & valid[i]) for c in cells] for i in range(3)])
    np.testing.assert_array_equal(totals.counts.to_numpy(), expected)


def test_random_draws_are_a_function_of_the_step(batch):
    def noisy(params, model_state, dsm, threshold, rngs=None, train=False):
        draws = jnp.stack([jax.random.uniform(rngs.dropout()), jax.random.uniform(rngs.drop_path())])
        return dsm * params["w"], draws

    params = {"w": jnp.array(1.0)}
    start = TrainState(
        jnp.zeros((), jnp.int32), params, jnp.zeros(2), optax.sgd(0.1).init(params), jax.random.key(0), noisy
    )
    step = partial(train_step(PLAIN), source=batch)
    one = step(start, Totals.zeros(THRESHOLDS))[0]
    again = step(start, Totals.zeros(THRESHOLDS))[0]
    two = step(one, Totals.zeros(THRESHOLDS))[0]
    np.testing.assert_array_equal(one.model_state, again.model_state)
    assert len({float(x) for x in (*one.model_state, *two.model_state)}) == 4


def test_fault_15_the_sigmoid_is_applied_once(state, batch):
    probability = predict_step(state, batch.dsm, batch.threshold)
    logits = 0.3 * np.asarray(batch.dsm, np.float64) - 0.2 * np.asarray(batch.threshold)[:, None, None, None]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert probability.dtype == jnp.float32


# The size of a pixel

RESOLUTION = np.float32([0.5, 1.0, 2.0])


def told(params, model_state, dsm, threshold, rngs=None, train=False, resolution=None):
    """A model whose logits are per metre of a pixel's side."""
    side = jnp.ones_like(threshold) if resolution is None else resolution
    logits, _ = linear(params, model_state, dsm, threshold)
    return logits * side[:, None, None, None], model_state


def anything(params, model_state, dsm, threshold, **options):
    return told(params, model_state, dsm, threshold, **options)


def logits_of(batch, side):
    threshold = np.asarray(batch.threshold)
    return (0.3 * np.asarray(batch.dsm, np.float64) - 0.2 * threshold[:, None, None, None]) * side


@pytest.mark.parametrize("apply", [told, anything, linear])
def test_predictions_are_told_the_size_of_a_pixel_where_the_model_takes_it(state, batch, apply):
    state = replace(state, apply=apply)
    side = 1.0 if apply is linear else RESOLUTION[:, None, None, None]
    known = predict_step(state, batch.dsm, batch.threshold, jnp.asarray(RESOLUTION))
    np.testing.assert_allclose(known, 1 / (1 + np.exp(-logits_of(batch, side))), rtol=1e-5)
    unknown = predict_step(state, batch.dsm, batch.threshold)
    np.testing.assert_allclose(unknown, 1 / (1 + np.exp(-logits_of(batch, 1.0))), rtol=1e-5)
    np.testing.assert_array_equal(predict(state, batch.dsm, batch.threshold, RESOLUTION), known)
    twice = predict(state, batch.dsm, batch.threshold, 2.0)
    np.testing.assert_allclose(
        twice, 1 / (1 + np.exp(-logits_of(batch, 1.0 if apply is linear else 2.0))), rtol=1e-5
    )


@pytest.mark.parametrize("given", [RESOLUTION, None], ids=["told", "not told"])
@pytest.mark.parametrize("apply", [told, anything, linear])
def test_training_and_evaluation_are_told_the_size_of_a_pixel_by_the_batch(state, batch, apply, given):
    state, batch = replace(state, apply=apply), replace(batch, resolution=given)
    side = 1.0 if apply is linear or given is None else given[:, None, None, None]
    mask, valid, z = np.asarray(batch.mask), np.asarray(batch.valid), logits_of(batch, side)
    loss = np.sum(valid * (np.logaddexp(0, z) - mask * z)) / valid.sum()
    _, _, logs = train_step(PLAIN)(state, Totals.zeros(THRESHOLDS), batch)
    np.testing.assert_allclose(logs.loss, loss, rtol=1e-5)
    evaluate = make_eval_step(BCELoss(), THRESHOLDS)
    _, logs = evaluate(state, Totals.zeros(THRESHOLDS), batch, np.int32(0))
    np.testing.assert_allclose(logs.loss, loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("resolution", "error", "said"),
    [(0.0, ValueError, "resolution = 0: .*above 0"), ("1 m", TypeError, "resolution = '1 m'")],
)
def test_a_pixel_without_a_size_is_refused_by_name(state, batch, resolution, error, said):
    with pytest.raises(error, match=said):
        predict(state, batch.dsm, batch.threshold, resolution)


# Several thresholds a tile

SEVERAL = np.float32([[5.0, 2.0], [15.0, 3.0], [7.0, 5.0]])


def of_each(batch, heights=SEVERAL):
    """A batch at several thresholds, and the same with one threshold a sample, by hand."""
    rng = np.random.default_rng(1)
    dsm, valid = np.asarray(batch.dsm), np.asarray(batch.valid)
    masks = (rng.random((*dsm.shape[:3], heights.shape[1])) < 0.4).astype(np.float32)
    chm = rng.uniform(0, 20, dsm.shape).astype(np.float32)
    each = [(tile, number) for tile in range(len(dsm)) for number in range(heights.shape[1])]
    flat = Batch(
        np.stack([dsm[tile] for tile, _ in each]),
        np.stack([masks[tile, ..., [number]].transpose(1, 2, 0) for tile, number in each]),
        np.stack([heights[place] for place in each]),
        np.stack([valid[tile] for tile, _ in each]),
        np.stack([chm[tile] for tile, _ in each]),
        np.stack([RESOLUTION[tile] for tile, _ in each]),
    )
    several = Batch(dsm, masks, heights, valid, chm, RESOLUTION)
    return jax.tree.map(jnp.asarray, (several, flat))


def assert_close(found, expected, **tolerance):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerance)


def keyless(state):
    return state.params, state.model_state, state.opt_state, state.step


def test_several_thresholds_of_a_tile_train_as_the_tile_at_each(state, batch):
    state = replace(state, apply=told)
    (new, totals, logs), (expected, of_flat, flat_logs) = (
        train_step(PLAIN)(state, Totals.zeros(THRESHOLDS), source) for source in of_each(batch)
    )
    assert_close((keyless(new), totals, logs.loss), (keyless(expected), of_flat, flat_logs.loss), rtol=1e-6)


@pytest.mark.parametrize("loss", [BCELoss(), MAELoss()], ids=["gaps", "heights"])
def test_several_thresholds_of_a_tile_are_evaluated_as_the_tile_at_each(state, batch, loss):
    def heights_or_logits(params, model_state, dsm, threshold, **options):
        height = params["w"] * dsm + 10.0
        return height if threshold is None else threshold[:, None, None, None] - height, model_state

    state, heights = replace(state, apply=heights_or_logits), isinstance(loss, MAELoss)
    several, flat = of_each(batch)
    expected_of = replace(several, threshold=several.threshold[:, 0], mask=several.mask[..., :1])
    (totals, logs), (expected, expected_logs) = (
        make_eval_step(loss, THRESHOLDS)(
            state, Totals.zeros(THRESHOLDS, histogram=True, heights=heights), source, np.int32(0)
        )
        for source in (several, expected_of if heights else flat)
    )
    assert_close((totals, logs), (expected, expected_logs), rtol=1e-6)


def test_heights_are_trained_on_each_tile_once_however_many_thresholds_it_comes_with(state, batch):
    def heights(params, model_state, dsm, threshold, rngs=None, train=False):
        assert threshold is None
        return params["w"] * dsm + params["b"], model_state

    state, recipe = replace(state, apply=heights), replace(PLAIN, loss=MAELoss())
    several, _ = of_each(batch)
    one = replace(several, threshold=several.threshold[:, 0], mask=several.mask[..., :1])
    found, expected = (
        train_step(recipe)(state, Totals.zeros(THRESHOLDS, heights=True), source) for source in (several, one)
    )
    assert_close((keyless(found[0]), *found[1:]), (keyless(expected[0]), *expected[1:]), rtol=1e-6)
    assert int(found[1].pixels) == batch.valid.sum()


@pytest.fixture(scope="module")
def drawn(sites):
    """Settings with several thresholds a tile, and their samplers."""
    config = Config(
        batch_size=4, features=4, depth=1, tile_size=16, split_buffer=0.0, thresholds=THRESHOLDS,
        threshold_range=(2.0, 25.0), thresholds_per_tile=3, opening_windows=(5, 17), learning_rate=1e-2,
        use_progress_bar=False,
    )  # fmt: skip
    return config, create_data(sites, config)


def test_a_network_of_one_pass_learns_what_a_pass_for_each_threshold_teaches(drawn):
    config, data = drawn
    config = replace(config, model_name="unet_ground")
    state = create_state(create_model_from_config(config), config)
    state = replace(state, opt_state=optax.sgd(1.0).init(state.params))
    passes = []

    def hidden(params, model_state, dsm, threshold, **options):
        passes.append((dsm.shape[0], threshold.shape))
        return state.apply(params, model_state, dsm, threshold, **options)

    def shown(*arguments, **options):
        return hidden(*arguments, **options)

    shown.several_thresholds = state.apply.several_thresholds

    loss = weigh_by_threshold(create_loss_function(config), {5.0: 1.5, 15.0: 0.5})
    recipe = replace(PLAIN, loss=loss, optimizer=optax.sgd(1.0))
    step = jax.jit(train_step(recipe))
    (one, totals, logs), (each, of_each, each_logs) = (
        step(start, Totals.zeros(THRESHOLDS), data.train)
        for start in (replace(state, apply=apply) for apply in (shown, hidden))
    )
    assert passes == [(4, (4, 3)), (12, (12,))]
    assert int(totals.pixels) > 0
    np.testing.assert_allclose(logs.loss, each_logs.loss, rtol=1e-5)
    np.testing.assert_allclose(logs.grad_norm, each_logs.grad_norm, rtol=1e-4)
    assert_close(totals, of_each, rtol=1e-5)
    assert_close(one.params, each.params, atol=1e-5, rtol=1e-4)
    assert_close(one.model_state, each.model_state, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["unet_film", "unet_ground"])
def test_networks_train_and_are_scored_on_several_thresholds_a_tile(drawn, name):
    config, data = drawn
    config = replace(config, model_name=name)
    state = create_state(create_model_from_config(config), config)
    step, losses = make_train_step(make_recipe(config, data.train.steps_per_epoch)), []
    for _ in range(24):
        state, totals, logs = step(state, Totals.zeros(THRESHOLDS), data.train)
        losses.append(float(logs.loss))
    assert totals.counts.to_numpy().sum() == int(totals.pixels)
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    # The training tiles too can be scored, at the thresholds that they are drawn with.
    scored = evaluate(state, config, data.train)
    assert np.isfinite(scored["loss"])
