"""A sweep over what a compiled step takes as arguments compiles once, and each value acts."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Batch, Config, evaluate, train
from forestgaps_jax.loss import (
    AdaptiveLoss,
    CombinedFocalDiceLoss,
    CombinedRegressionLoss,
    ComboLoss,
    FocalLoss,
    ThresholdWeightedLoss,
    join_weights,
    split_weights,
)
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.state import init_state
from forestgaps_jax.steps import make_eval_step, make_train_step, train_step
from forestgaps_jax.totals import Totals

RNG = np.random.default_rng(0)
DSM = jnp.asarray(RNG.normal(size=(4, 8, 8, 1)), jnp.float32)
MASK = jnp.asarray(RNG.random(DSM.shape) < 0.4, jnp.float32)
BASE = Config(
    thresholds=(5.0, 15.0), scheduler_type="cosine_warm", epochs=4, warmup_epochs=1.0, optimizer="adamw",
    use_droppath=True,
)  # fmt: skip
SWEEPS = {
    "learning rate": [{"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
    "lowest rate": [{"min_lr": rate, "warmup_start_lr": rate} for rate in (1e-7, 1e-5)],
    "weight decay": [{"weight_decay": decay} for decay in (0.0, 10.0)],
    "stochastic depth": [{"droppath_start_prob": p, "droppath_final_prob": 2 * p} for p in (0.1, 0.3)],
    "thresholds": [{"thresholds": heights} for heights in ((5.0, 15.0), (7.5, 15.0), (5.0, 30.0))],
    "share of the focal loss": [{"loss_alpha": share} for share in (0.0, 0.3, 1.0)],
    "weight of gaps": [{"focal_alpha": share} for share in (0.2, 0.7)],
    "combo": [
        {"loss_type": "combo", "combo_weights": weights} for weights in ((0.5, 0.3, 0.2), (0.1, 0.1, 3.0))
    ],
    "onecycle": [{"scheduler_type": "onecycle", "max_lr": peak} for peak in (0.01, 0.1)],
}


def steered(params, model_state, dsm, threshold, rngs=None, train=False, drop_path_rate=0.0):
    logits = params["w"] * (1.0 - drop_path_rate) * dsm + params["b"] * threshold[:, None, None, None]
    return logits, model_state


def new_state(config: Config):
    return init_state(steered, {"w": jnp.full((1, 1), 0.3), "b": jnp.asarray(-0.02)}, config)


def batch_of(config: Config) -> Batch:
    return Batch(DSM, MASK, jnp.resize(jnp.asarray(config.thresholds, jnp.float32), 4))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_compiles_once_and_each_of_its_values_acts(name):
    compiled: list[int] = []
    results: list[Any] = []
    for settings in SWEEPS[name]:
        config = replace(BASE, **settings)
        recipe, batch = make_recipe(config, 5), batch_of(config)
        step, plain = make_train_step(recipe), train_step(recipe)
        state, expected = new_state(config), new_state(config)
        totals = wanted = Totals.zeros(config.thresholds, training=True)
        for _ in range(3):
            expected, wanted, _ = plain(expected, wanted, batch)
        for _ in range(3):
            state, totals, logs = step(jax.tree.map(jnp.copy, state), jax.tree.map(jnp.copy, totals), batch)
        compiled.append(step._cache_size())  # type: ignore[attr-defined]
        np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5)
        np.testing.assert_array_equal(totals.counts.to_numpy(), wanted.counts.to_numpy())
        results.append(
            [float(x) for x in (state.params["w"].item(), state.params["b"], totals.loss, logs.lr)]
        )
    assert len(set(compiled)) == 1
    assert len({tuple(result) for result in results}) == len(results)


def test_threshold_weights_are_arguments_too():
    sizes, losses = [], []
    for weights in ({5.0: 1.0, 15.0: 1.0}, {5.0: 2.0, 15.0: 0.5}):
        recipe = make_recipe(BASE, 5, threshold_weights=weights)
        step = make_train_step(recipe)
        _, _, logs = step(new_state(BASE), Totals.zeros(BASE.thresholds, training=True), batch_of(BASE))
        sizes.append(step._cache_size())  # type: ignore[attr-defined]
        losses.append(float(logs.loss))
        given = {"threshold": batch_of(BASE).threshold, "valid": None}
        logits = 0.3 * DSM * (1.0 - recipe.drop_path_rate(0)) - 0.02 * given["threshold"][:, None, None, None]  # type: ignore[misc]
        assert losses[-1] == pytest.approx(float(recipe.loss(logits, MASK, **given)), rel=1e-5)
    assert sizes[0] == sizes[1]
    assert losses[0] != losses[1]


def test_evaluation_of_other_weights_and_thresholds_compiles_once():
    sizes = []
    for alpha, thresholds in ((0.3, (5.0, 15.0)), (0.8, (6.0, 15.0))):
        step = make_eval_step(FocalLoss(alpha=alpha), thresholds)
        config = replace(BASE, thresholds=thresholds)
        totals, logs = step(
            new_state(config), Totals.zeros(thresholds, histogram=True), batch_of(config), np.int32(0)
        )
        batch = batch_of(config)
        logits = 0.3 * DSM - 0.02 * batch.threshold[:, None, None, None]
        assert float(logs.loss) == pytest.approx(float(FocalLoss(alpha=alpha)(logits, MASK)), rel=1e-5)
        assert totals.counts.to_numpy()[:2].sum() == DSM.size
        sizes.append(step._cache_size())  # type: ignore[attr-defined]
    assert sizes[0] == sizes[1]


def test_other_settings_compile_another_step():
    def plan(**settings):
        return make_recipe(replace(BASE, **settings), 5).plan

    assert plan() == plan(name="other", seed=7, use_progress_bar=False, learning_rate=0.5)
    for settings in ({"optimizer": "sgd"}, {"epochs": 5}, {"focal_gamma": 1.0}, {"loss_type": "bce"}):
        assert plan() != plan(**settings)


@pytest.mark.parametrize(
    "loss",
    [
        FocalLoss(alpha=0.3),
        FocalLoss(alpha=None),
        CombinedFocalDiceLoss(alpha=0.2, focal_alpha=0.9),
        CombinedFocalDiceLoss(alpha=0.2, threshold_weights={5.0: 2.0, 10.0: 1.0}),
        ComboLoss(weights=(0.1, 0.2, 0.3)),
        CombinedRegressionLoss(0.3, 0.9),
        ThresholdWeightedLoss(ComboLoss(), (5.0, 10.0), (2.0, 1.0)),
        AdaptiveLoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_loss_is_the_same_after_its_weights_were_taken_apart(loss):
    structure, weights = split_weights(loss)
    assert hash(structure) == hash(split_weights(loss)[0])
    assert join_weights(structure, weights) == loss
    arrays = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), weights, is_leaf=lambda x: isinstance(x, tuple)
    )
    given = {"threshold": jnp.asarray([5.0, 7.0, 9.0, 11.0])} if loss.needs_threshold else {}
    value = jax.jit(lambda arrays: join_weights(structure, arrays)(DSM, MASK, **given))(arrays)
    np.testing.assert_allclose(value, loss(DSM, MASK, **given), rtol=1e-6)


def test_a_function_has_no_weights():
    def loss(logits, targets, *, valid=None, sample_weight=None):
        return jnp.mean((logits - targets) ** 2)

    assert split_weights(loss) == (loss, {})
    assert join_weights(loss, {}) is loss


def test_training_at_other_rates_thresholds_and_weights_compiles_nothing_anew(state, config, data, sites):
    from forestgaps_jax.data import create_data

    counts = []
    for number in range(3):
        height = 10.0 + number
        changed = replace(
            config, epochs=1, learning_rate=1e-3 * (1 + number), loss_alpha=0.3 + 0.1 * number,
            thresholds=(*config.thresholds[:-1], config.thresholds[-1] + height),
        )  # fmt: skip
        before = _compilations()
        _, history = train(state, changed, create_data(sites, changed), default_callbacks=False)
        evaluate(state, changed, data.val)
        counts.append(_compilations() - before)
        assert np.isfinite(history["train_loss"]).all()
    assert counts[1:] == [0, 0]


def _compilations() -> int:
    """Programs compiled or fetched since `jax.monitoring` was first asked."""
    if not _SEEN:
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, _, **__: _SEEN.append(name) if name.endswith("backend_compile_duration") else None
        )
        _SEEN.append("the start")
    return len(_SEEN)


_SEEN: list[str] = []
