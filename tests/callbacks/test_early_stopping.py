import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax import Data, TrainState
from forestgaps_jax.callbacks import CallbackList, EarlyStoppingCallback, Run
from tests.callbacks.driving import STEPS, drive, new_run, scores, weight
from tests.conftest import TINY

LOSS = st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan])


def losses(*values: float) -> list[dict]:
    return [scores(loss=value) for value in values]


def test_fault_02_early_stopping_really_stops_and_says_why(state, config):
    run = new_run(state, replace(config, epochs=9))
    callback = EarlyStoppingCallback(patience=2)
    drive(run, [callback], losses(0.5, 0.4, 0.45, 0.41, 0.1))
    assert len(run.history["lr"]) == 4
    assert run.stop_reason == "val_loss has not improved on its 0.4 of epoch 2 for 2 epochs"
    assert (callback.best, callback.best_epoch) == (0.4, 1)


def test_fault_02_a_score_is_maximised_and_an_error_minimised(state, config):
    better, worse = scores((8, 1, 1, 10)), scores((5, 3, 2, 10))
    for name in ("val_iou", "val_error_rate", "val_iou_5m"):
        run = new_run(state, replace(config, epochs=9))
        drive(run, [EarlyStoppingCallback(name, patience=1)], [worse, better, worse])
        assert len(run.history["lr"]) == 3


def bare_run(epochs: int) -> Run:
    state = TrainState(jnp.int32(0), {}, {}, {}, jax.random.key(0), max)
    return Run(replace(TINY, epochs=epochs), state, 1)


def last_epoch(callback: EarlyStoppingCallback, values: list[float]) -> int:
    """The epoch in which the training ends, on losses alone."""
    run = bare_run(len(values))
    hooks = CallbackList([callback], run)
    hooks.fire("on_train_begin", config=run.config)
    for epoch, loss in enumerate(values):
        hooks.fire("on_epoch_end", epoch, val_metrics={"loss": loss})
        if run.stop_reason is not None:
            break
    return epoch


@given(
    values=st.lists(LOSS, min_size=1, max_size=15),
    patience=st.integers(1, 5),
    delta=st.sampled_from([0, 0.15]),
)
def test_the_end_is_the_first_epoch_with_patience_many_without_improvement(values, patience, delta):
    best, waited, end = math.inf, 0, len(values) - 1
    for epoch, value in enumerate(values):
        improves = value < best - delta
        best, waited = (value, 0) if improves else (best, waited + 1)
        if waited == patience:
            end = epoch
            break
    assert last_epoch(EarlyStoppingCallback(patience=patience, min_delta=delta), values) == end


def test_no_patience_ends_at_the_first_epoch_without_improvement():
    assert last_epoch(EarlyStoppingCallback(patience=0), [0.5, 0.4, 0.4, 0.3]) == 2


def test_a_loss_that_is_never_a_number_ends_the_training(state, config):
    run = new_run(state, replace(config, epochs=9))
    drive(run, [EarlyStoppingCallback(patience=3)], losses(*[math.nan] * 6))
    assert run.stop_reason == "val_loss had no finite value for 3 epochs"


def test_a_training_that_ran_to_its_end_was_not_stopped(state, config):
    run = new_run(state, config)
    drive(run, [EarlyStoppingCallback(patience=1)], losses(0.4, 0.5))
    assert run.stop_reason is None


@pytest.mark.parametrize("epochs", [4, 9], ids=["to the end", "stopped"])
def test_the_best_weights_are_given_back_though_the_steps_took_their_arrays(state, config, epochs):
    run = new_run(state, replace(config, epochs=epochs))
    drive(run, [EarlyStoppingCallback(patience=2, restore_best=True)], losses(0.5, 0.3, 0.6, 0.7))
    assert weight(run.state) == 2 * STEPS
    assert int(run.state.step) == 4 * STEPS


def test_without_restore_best_the_last_weights_stay(state, config):
    run = new_run(state, replace(config, epochs=9))
    drive(run, [EarlyStoppingCallback(patience=2)], losses(0.5, 0.3, 0.6, 0.7))
    assert weight(run.state) == 4 * STEPS


def test_statistics_and_moving_averages_come_back_with_the_weights(state, config):
    state = replace(state, ema_params={"w": jnp.ones(2)}, loss_params={"w": jnp.zeros(2)})
    run = new_run(state, replace(config, epochs=2))
    hooks = CallbackList([EarlyStoppingCallback(restore_best=True)], run)
    hooks.fire("on_train_begin", config=run.config)
    hooks.fire("on_epoch_end", 0, val_metrics={"loss": 0.1})
    names = ("ema_params", "model_state", "loss_params")
    run._advance(replace(run.state, **{n: jax.tree.map(lambda x: x + 1, getattr(state, n)) for n in names}))
    hooks.fire("on_epoch_end", 1, val_metrics={"loss": 0.2})
    hooks.fire("on_train_end")
    assert jax.tree.leaves(state.model_state)
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, getattr(run.state, name), getattr(state, name))


def test_nothing_to_restore_is_said(state, config, caplog):
    run = new_run(state, config)
    drive(run, [EarlyStoppingCallback(restore_best=True)], losses(math.nan, math.nan))
    assert weight(run.state) == 2 * STEPS
    assert "no epoch of this training improved val_loss" in caplog.text


def test_epochs_before_an_interruption_count(state, config):
    run = new_run(state, replace(config, epochs=9))
    drive(run, [EarlyStoppingCallback(patience=3)], losses(0.3, 0.4))
    callback = EarlyStoppingCallback(patience=3)
    drive(run, [callback], losses(0.35, 0.4), start=2)
    assert "0.3 of epoch 1 for 3 epochs" in run.stop_reason
    assert len(run.history["lr"]) == 4


@pytest.mark.parametrize("epochs", [3, 9], ids=["at its end", "stopped"])
def test_training_again_after_the_patience_is_used_up_trains_nothing(state, config, caplog, epochs):
    config = replace(config, epochs=epochs)
    first = new_run(state, config)
    drive(first, [EarlyStoppingCallback(patience=2)], losses(0.3, 0.5, 0.4))
    again = Run(config, first.state, STEPS, history=first.history)
    drive(again, [EarlyStoppingCallback(patience=2, restore_best=True)], [])
    at_once = "val_loss has not improved on its 0.3 of epoch 1 for 2 epochs"
    assert again.stop_reason == (at_once if epochs == 9 else None)
    assert caplog.text == ""
    more = Run(config, first.state, STEPS, history=first.history)
    drive(more, [EarlyStoppingCallback(patience=5)], [])
    assert more.stop_reason is None


def test_an_error_in_metres_of_a_network_of_gaps_is_refused_at_the_start(state, config):
    run = Run(config, state, STEPS, heights=False)
    with pytest.raises(ValueError, match="val_rmse is of predicted heights"):
        drive(run, [EarlyStoppingCallback("val_rmse")], [])


def test_a_callback_can_serve_two_trainings(state, config):
    callback = EarlyStoppingCallback(patience=1)
    for _ in range(2):
        run = new_run(state, replace(config, epochs=9))
        drive(run, [callback], losses(0.5, 0.3, 0.6, 0.7))
        assert len(run.history["lr"]) == 3


def test_a_validation_metric_without_validation_is_refused_at_the_start(state, config, data):
    run = new_run(state, config, Data(train=data.train))
    with pytest.raises(ValueError, match="val_loss needs validation data"):
        drive(run, [EarlyStoppingCallback()], [])
    drive(new_run(state, config, Data(train=data.train)), [EarlyStoppingCallback("train_loss")], [{}])
    drive(new_run(state, config, data), [EarlyStoppingCallback()], losses(0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": "val_los"}, "did you mean 'val_loss'"),
        ({"mode": "least"}, "mode = 'least'"),
        ({"patience": -1}, "patience = -1: must be 0 or more"),
        ({"min_delta": -1.0}, "min_delta = -1.0: must be 0 or more"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_when_they_are_given(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyStoppingCallback(**arguments)
