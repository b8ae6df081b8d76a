"""Each feature of the training step, shown to act by a test that fails if it did nothing."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from forestgaps_jax import Batch, Config, TrainState, create_state, evaluate, train
from forestgaps_jax.loss import BCELoss, FocalLoss, create_threshold_weights, weigh_by_threshold
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.optimization import create_scheduler
from forestgaps_jax.readiness import check_state
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.state import init_state
from forestgaps_jax.statistics import gap_shares
from forestgaps_jax.steps import make_train_step, train_step
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import pytree_dataclass

THRESHOLDS = (5.0, 15.0)
SETTINGS = Config(
    epochs=4, thresholds=THRESHOLDS, loss_type="bce", optimizer="sgd", momentum=0.0, nesterov=False,
    weight_decay=0.0, learning_rate=0.1, min_lr=0.1, scheduler_type="constant",
)  # fmt: skip


def linear(params, model_state, dsm, threshold, rngs=None, train=False):
    """A model of two weights, without a library."""
    return params["w"] * dsm + params["b"] * threshold[:, None, None, None], model_state


def new_state(config: Config) -> TrainState:
    return init_state(linear, {"w": jnp.array(0.3), "b": jnp.array(-0.2)}, config)


def new_batch(seed: int, size: int = 3) -> Batch:
    rng = np.random.default_rng(seed)
    dsm = rng.normal(size=(size, 4, 4, 1)).astype(np.float32)
    mask = (rng.random(dsm.shape) < 0.4).astype(np.float32)
    parts = dsm, mask, np.resize(np.float32([5.0, 15.0]), size), rng.random(dsm.shape) < 0.8
    return Batch(*(jnp.asarray(part) for part in parts))


def run(config: Config, batches: list[Batch], state: TrainState | None = None) -> list[TrainState]:
    """The states after each batch."""
    step, states = train_step(make_recipe(config, len(batches))), [state or new_state(config)]
    for batch in batches:
        states.append(step(states[-1], Totals.zeros(THRESHOLDS), batch)[0])
    return states[1:]


def gradient(params: dict, batch: Batch) -> dict[str, np.ndarray]:
    """Of the cross-entropy, in float64."""
    dsm, height = np.float64(batch.dsm), np.float64(batch.threshold)[:, None, None, None]
    p = 1 / (1 + np.exp(-(float(params["w"]) * dsm + float(params["b"]) * height)))
    residual = (p - batch.mask) * batch.valid / np.sum(batch.valid)
    return {"w": (residual * dsm).sum(), "b": (residual * height).sum()}


def test_accumulation_steps_once_in_k_batches_by_the_mean_gradient():
    batches = [new_batch(seed) for seed in range(4)]
    states = run(replace(SETTINGS, gradient_accumulation_steps=2), batches)
    start = new_state(SETTINGS).params
    assert states[0].params == start
    grads = [gradient(start, batch) for batch in batches[:2]]
    for name in start:
        mean = (grads[0][name] + grads[1][name]) / 2
        np.testing.assert_allclose(states[1].params[name], start[name] - 0.1 * mean, rtol=1e-5)
    assert states[2].params == states[1].params != states[3].params
    assert int(states[3].step) == 4


def test_accumulated_batches_share_one_learning_rate():
    config = replace(
        SETTINGS, gradient_accumulation_steps=2, scheduler_type="exponential", exponential_gamma=0.5
    )
    step, state, rates = train_step(make_recipe(config, 4)), new_state(config), []
    for seed in range(4):
        state, _, logs = step(state, Totals.zeros(THRESHOLDS), new_batch(seed))
        rates.append(float(logs.lr))
    assert rates[0] == rates[1] > rates[2] == rates[3]


def test_moving_average_follows_the_weights_by_its_decay():
    states = run(replace(SETTINGS, ema_decay=0.9), [new_batch(seed) for seed in range(5)])
    average = np.float64(0.3)
    for number, state in enumerate(states, start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * float(state.params["w"])
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-5)
    assert states[-1].ema_params["w"] != states[-1].params["w"]


def test_moving_average_is_what_is_scored():
    config = replace(SETTINGS, ema_decay=0.999)
    state = run(config, [new_batch(seed) for seed in range(3)])[-1]
    plain = replace(state, ema_params=None)
    averaged = replace(plain, params=state.ema_params)
    batch = [new_batch(9)]
    assert evaluate(state, config, batch)["loss"] == evaluate(averaged, config, batch)["loss"]
    assert evaluate(state, config, batch)["loss"] != evaluate(plain, config, batch)["loss"]


def test_plateau_scales_the_updates_without_a_new_compilation():
    config = replace(SETTINGS, scheduler_type="plateau", min_lr=1e-6)
    step, batch = make_train_step(make_recipe(config, 1)), new_batch(0)
    state = new_state(config)
    moved = []
    for scale in (1.0, 0.1):
        scaled = replace(state, plateau=replace(state.plateau, scale=jnp.asarray(scale, jnp.float32)))
        start = float(state.params["w"])
        new, _, logs = step(jax.tree.map(jnp.copy, scaled), Totals.zeros(THRESHOLDS), batch)
        moved.append(float(new.params["w"]) - start)
        assert float(logs.lr) == pytest.approx(0.1 * scale)
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=1e-3)
    assert step._cache_size() == 1  # type: ignore[attr-defined]


def test_plateau_lowers_the_rate_when_validation_makes_no_progress(config, data):
    config = replace(
        config, epochs=5, scheduler_type="plateau", plateau_patience=1, plateau_factor=0.5,
        monitor_metric="val_loss", plateau_threshold=1e9, plateau_threshold_mode="abs",
    )  # fmt: skip
    state, history = train(create_state(create_model_from_config(config), config), config, data)
    # The first epoch sets the best; each two after it without progress halve the rate for the next.
    np.testing.assert_allclose(np.array(history["lr"]) / config.learning_rate, [1, 1, 1, 0.5, 0.5], rtol=1e-6)
    assert float(state.plateau.scale) == pytest.approx(0.25)


def test_drop_path_rate_follows_the_training_without_a_new_compilation():
    seen = []

    def apply(params, model_state, dsm, threshold, rngs=None, train=False, drop_path_rate=None):
        seen.append(drop_path_rate)
        return params["w"] * dsm, {"rate": jnp.asarray(drop_path_rate, jnp.float32)}

    config = replace(SETTINGS, use_droppath=True, droppath_start_prob=0.1, droppath_final_prob=0.5, epochs=10)
    state = init_state(apply, {"w": jnp.array(0.3)}, config, model_state={"rate": jnp.zeros(())})
    step, rates = make_train_step(make_recipe(config, 1)), []
    for _ in range(10):
        state, _, _ = step(state, Totals.zeros(THRESHOLDS), new_batch(0))
        rates.append(float(state.model_state["rate"]))
    assert rates[0] == pytest.approx(0.1)
    assert rates[8:] == pytest.approx([0.5, 0.5])
    assert np.all(np.diff(rates) >= 0)
    assert len(seen) == 1


def test_gradient_norms_of_an_epoch_are_recorded_before_clipping():
    config = replace(SETTINGS, monitor_gradients=True, use_gradient_clipping=True, clip_value=1e-3)
    batches = [new_batch(seed) for seed in range(3)]
    step, state = train_step(make_recipe(config, 3)), new_state(config)
    totals, norms = Totals.zeros(THRESHOLDS, norms=True), []
    for batch in batches:
        norms.append(np.linalg.norm(list(gradient(state.params, batch).values())))
        before = state.params
        state, totals, _ = step(state, totals, batch)
        moved = [float(state.params[name] - before[name]) for name in before]
        assert np.linalg.norm(moved) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    metrics = totals.summary(THRESHOLDS)
    assert metrics["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert metrics["grad_norm_max"] == pytest.approx(np.max(norms), rel=1e-4)


def test_gradient_norms_are_in_the_history_only_if_asked_for(config, data):
    def metrics(**settings):
        changed = replace(config, epochs=1, **settings)
        state = create_state(create_model_from_config(changed), changed)
        return train(state, changed, data)[1]["train_metrics"][0]

    assert metrics(monitor_gradients=True)["grad_norm"] > 0
    assert "grad_norm" not in metrics()


def test_fault_06_threshold_weights_come_from_the_training_data_and_act_per_sample():
    config = replace(SETTINGS, use_threshold_weights=True)
    batch = new_batch(0, 4)
    weights = create_threshold_weights(config, {5.0: 0.1, 15.0: 0.3})
    assert weights[5.0] > weights[15.0]
    recipe = make_recipe(config, 1, threshold_weights=weights)
    _, _, logs = train_step(recipe)(new_state(config), Totals.zeros(THRESHOLDS), batch)

    dsm, height = np.float64(batch.dsm), np.float64(batch.threshold)[:, None, None, None]
    x = 0.3 * dsm - 0.2 * height
    terms = np.logaddexp(0, x) - batch.mask * x
    factor = np.vectorize(weights.get)(np.float64(batch.threshold))[:, None, None, None]
    expected = np.sum(factor * terms * batch.valid) / np.sum(batch.valid)
    np.testing.assert_allclose(logs.loss, expected, rtol=1e-5)


def test_fault_06_gap_shares_are_those_of_the_rasters(config, data, sites):
    size = config.tile_size
    cut = [sites[s].chm[r : r + size, c : c + size] for s, r, c in np.asarray(data.train.places)]
    shares = gap_shares(data.train, config.thresholds)
    for threshold in config.thresholds:
        assert shares[threshold] == pytest.approx(np.mean(np.stack(cut) < threshold), rel=1e-6)


def test_gap_shares_of_batches_leave_out_what_is_not_valid_and_not_listed():
    batches = [new_batch(seed, 4) for seed in range(2)]
    shares = gap_shares([*batches, replace(new_batch(3), threshold=np.full(3, 7.0, np.float32))], (5.0, 9.0))
    gap = sum(np.sum(b.mask[::2] * b.valid[::2]) for b in batches)
    assert shares[5.0] == pytest.approx(gap / sum(np.sum(b.valid[::2]) for b in batches))
    assert np.isnan(shares[9.0])


@pytree_dataclass
class Repeated:
    """A sampler that gives the same batch at each step."""

    batch: Batch

    @property
    def steps_per_epoch(self):
        return 2

    def sample(self, step):
        return self.batch


def test_gap_shares_of_a_sampler_count_each_of_a_tiles_thresholds(data, config):
    batch = new_batch(0, 4)
    masks = np.concatenate([batch.mask, 1 - batch.mask], axis=-1)
    heights = np.tile(np.float32([15.0, 5.0]), (4, 1))
    shares = gap_shares(Repeated(jax.tree.map(jnp.asarray, Batch(batch.dsm, masks, heights))), THRESHOLDS)
    gap = float(batch.mask.mean())
    expected = {15.0: gap, 5.0: 1 - gap}
    assert shares == pytest.approx(expected, rel=1e-5)
    drawn = replace(data.train, thresholds_per_tile=2)
    assert gap_shares(drawn, config.thresholds) == gap_shares(data.train, config.thresholds)


def test_use_threshold_weights_needs_nothing_else(config, data, caplog):
    caplog.set_level("INFO")
    config = replace(config, epochs=1, use_threshold_weights=True)
    weighted = train(create_state(create_model_from_config(config), config), config, data)[1]
    config = replace(config, use_threshold_weights=False)
    plain = train(create_state(create_model_from_config(config), config), config, data)[1]
    assert weighted["train_loss"] != plain["train_loss"]
    assert "threshold weights from the training data: 5 m: " in caplog.text


def test_fault_07_what_an_adaptive_loss_learns_is_trained_with_the_model(config, data):
    config = replace(config, loss_type="adaptive", use_bce=True)
    state = create_state(create_model_from_config(config), config)
    trained, _ = train(state, config, data)
    before, after = (np.asarray(s.loss_params["log_variance"]) for s in (state, trained))
    assert before.shape == (3,)
    assert np.all(before != after)


def test_a_learnt_loss_leaves_the_gradient_of_the_model_as_it_is(config, data):
    """With its log-variances fixed at 0 an adaptive loss is the plain sum of its parts."""
    config = replace(SETTINGS, loss_type="adaptive", use_focal=False, use_dice=False, use_bce=True)
    batch = new_batch(0)
    adaptive, plain = run(config, [batch])[0], run(SETTINGS, [batch])[0]
    assert adaptive.params["w"] == pytest.approx(float(plain.params["w"]), rel=1e-5)


def own(optimizer, schedule=None, batches=1, **settings):
    """The states and the recorded rates of a training with an optimizer of one's own."""
    config = replace(SETTINGS, **settings)
    recipe = make_recipe(config, batches, optimizer=optimizer, scheduler=schedule)
    params = {"w": jnp.array(0.3), "b": jnp.array(-0.2)}
    states, rates = [init_state(linear, params, config, optimizer=optimizer)], []
    for number in range(batches):
        state, _, logs = train_step(recipe)(states[-1], Totals.zeros(THRESHOLDS), new_batch(number))
        states.append(state)
        rates.append(float(logs.lr))
    return states, rates


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.sgd(0.5)], ids=["maker", "transformation"])
def test_an_optimizer_of_ones_own_steps(optimizer):
    schedule = optax.constant_schedule(0.5) if optimizer is optax.sgd else None
    (start, new), rates = own(optimizer, schedule)
    expected = 0.3 - 0.5 * gradient(start.params, new_batch(0))["w"]
    np.testing.assert_allclose(new.params["w"], expected, rtol=1e-5)
    np.testing.assert_array_equal(rates, [0.5 if schedule else np.nan])


def test_clipping_and_accumulation_act_on_an_optimizer_of_ones_own():
    states, rates = own(
        optax.sgd, lambda step: 0.5 / (1 + step), batches=4, gradient_accumulation_steps=2,
        use_gradient_clipping=True, clip_value=1e-4,
    )  # fmt: skip
    assert states[1].params == states[0].params
    pairs = zip(states[:-2], states[2:], strict=True)
    moved = [np.hypot(*(float(b.params[k] - a.params[k]) for k in "wb")) for a, b in pairs]
    assert moved[0] == pytest.approx(0.5e-4, rel=1e-2)
    assert moved[2] == pytest.approx(0.25e-4, rel=1e-2)
    assert rates == [0.5, 0.5, 0.25, 0.25]


def test_fault_04_a_schedule_that_an_optimizer_cannot_follow_is_refused():
    with pytest.raises(ValueError, match="give what makes an optimizer from a schedule"):
        make_recipe(SETTINGS, 1, optimizer=optax.sgd(0.5), scheduler=optax.constant_schedule(0.1))


def test_a_rate_that_only_the_optimizer_knows_is_recorded_as_unknown(state, config, data):
    optimizer = optax.adam(1e-3)
    state = create_state(create_model_from_config(config), config, optimizer=optimizer)
    _, history = train(state, replace(config, epochs=1), data, optimizer=optimizer)
    assert np.isnan(history["lr"]).all()


def test_a_loss_of_ones_own_trains_and_scores(state, config, data):
    _, focal = train(state, config, data, loss_fn=FocalLoss(alpha=None))
    _, configured = train(state, replace(config, loss_type="focal", focal_alpha=0.5), data)
    # Weights of 1 and 1 against 1/2 and 1/2.
    assert focal["train_loss"][0] == pytest.approx(2 * configured["train_loss"][0], rel=0.1)


def test_fault_06_threshold_weights_act_on_a_loss_of_ones_own_or_are_refused():
    weights = {5.0: 0.5, 15.0: 1.5}
    recipe = make_recipe(SETTINGS, 1, loss_fn=BCELoss(), threshold_weights=weights)
    assert recipe.loss == weigh_by_threshold(BCELoss(), weights)
    assert recipe.score_loss == BCELoss()
    with pytest.raises(ValueError, match="threshold weights of its own"):
        make_recipe(SETTINGS, 1, loss_fn=recipe.loss, threshold_weights=weights)


def test_a_loss_of_probabilities_is_refused(state, config, data):
    with pytest.raises(ValueError, match="takes probabilities"):
        train(state, config, data, loss_fn=BCELoss(from_logits=False))
    with pytest.raises(ValueError, match="takes probabilities"):
        evaluate(state, config, data.val, loss_fn=BCELoss(from_logits=False))


@pytest.mark.parametrize(("name", "kind"), [("unet_film", "UNet"), ("unet_distribution", "DistributionUNet")])
def test_a_loss_of_heights_is_refused_for_a_network_of_gaps(config, data, name, kind):
    state = create_state(create_model_from_config(replace(config, model_name=name)), config)
    said = f"which {kind} does not predict: take the model unet_regression"
    with pytest.raises(ValueError, match=said):
        train(state, replace(config, loss_type="mse"), data)


def test_stochastic_depth_needs_a_model_that_takes_its_rate(config, data):
    class Plain(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, dsm, threshold, rngs=None, train=False):
            return dsm * self.scale[...]

    config = replace(config, use_droppath=True)
    with pytest.raises(ValueError, match="Plain takes no drop_path_rate"):
        train(create_state(Plain(), config), config, data)


@pytest.mark.parametrize(
    ("metric", "said"), [("train_pr_auc", "train_pr_auc"), ("val_rmse", "val_rmse"), ("val_iou_7m", "7 m")]
)
def test_a_metric_that_is_never_measured_is_refused_before_a_folder_is_made(
    state, config, data, tmp_path, metric, said
):
    config = replace(config, monitor_metric=metric, name="run", runs_dir=str(tmp_path))
    with pytest.raises(ValueError, match=said):
        train(state, config, data)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_cannot_leave_pixels_out_is_refused(state, config, data):
    with pytest.raises(TypeError, match="takes no valid="):
        train(state, config, data, loss_fn=lambda logits, targets: jnp.mean(logits))


def test_fault_04_recorded_rate_is_the_one_that_was_used():
    config = replace(SETTINGS, scheduler_type="cosine", min_lr=0.0, epochs=1)
    schedule = create_scheduler(config, 3)
    state = new_state(config)
    step = train_step(make_recipe(config, 3))
    for number in range(3):
        expected = float(state.params["w"]) - gradient(state.params, new_batch(number))["w"] * float(
            schedule(number)
        )
        state, _, logs = step(state, Totals.zeros(THRESHOLDS), new_batch(number))
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
        np.testing.assert_allclose(logs.lr, schedule(number), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ema_decay": 0.9}, "ema_decay = 0.9"),
        ({"scheduler_type": "plateau"}, "scheduler_type = 'plateau'"),
        ({"loss_type": "adaptive"}, "adaptive|Adaptive"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps = 2"),
        ({"use_gradient_clipping": True}, "use_gradient_clipping = True"),
    ],
    ids=str,
)
def test_a_state_of_other_settings_is_refused_in_words(state, config, data, changed, said):
    with pytest.raises(ValueError, match=said):
        train(state, replace(config, **changed), data)


def test_dropped_pixels_do_not_reach_the_loss_of_ones_own(state, config):
    rng = np.random.default_rng(0)
    dsm = rng.normal(300, 5, (4, 16, 16)).astype(np.float32)
    mask, valid = rng.random(dsm.shape) < 0.5, rng.random(dsm.shape) < 0.5
    flipped = np.where(valid, mask, ~mask)
    losses = [
        evaluate(
            state, config, [{"dsm": dsm, "mask": m, "threshold": 5.0, "valid": valid}], loss_fn=BCELoss()
        )
        for m in (mask, flipped)
    ]
    assert losses[0]["loss"] == losses[1]["loss"]


@pytest.mark.parametrize(
    ("name", "value", "built"),
    [
        ("dropout", 0.3, r"0\.0"),
        ("detrend", False, "True"),
        ("opening_windows", (3, 9), r"\(5, 9, 17, 33, 65\)"),
        ("height_scale", 5.0, r"10\.0"),
    ],
)
def test_a_setting_that_the_model_was_not_made_with_is_named(state, config, caplog, name, value, built):
    recipe = make_recipe(replace(config, dropout=0.3), 1)
    check_state(state, replace(config, **{name: value}), recipe)
    said = rf"{name} = {re.escape(repr(value))} does not act: the model was made with {built}"
    assert re.search(said, caplog.text)
    caplog.clear()
    check_state(state, config, recipe)
    assert caplog.text == ""
