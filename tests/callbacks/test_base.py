from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Callback, train
from forestgaps_jax.callbacks import EVENTS, CallbackList, LambdaCallback
from forestgaps_jax.run_folder import new_run_folder
from tests.callbacks.driving import STEPS, drive, new_run, scores, weight


class Recorder(Callback):
    """Writes down what fires, and with which logs."""

    def __init__(self):
        self.fired = []

    def __getattribute__(self, name):
        if name not in EVENTS:
            return super().__getattribute__(name)
        return lambda *arguments: self.fired.append((name, *arguments))


def names(recorder: Recorder) -> list[str]:
    return [event[0] for event in recorder.fired]


def test_logs_hold_what_is_in_the_history(state, config, data):
    recorder = Recorder()
    _, history = train(state, config, data, [recorder])
    logs = {event[0]: event[-1] for event in recorder.fired}
    assert logs["on_epoch_end"]["val_metrics"] == history["val_metrics"][-1]
    assert logs["on_validation_end"]["metrics"] == history["val_metrics"][-1]
    assert logs["on_train_end"]["history"] is history
    best = max(metrics["iou"] for metrics in history["val_metrics"])
    assert logs["on_train_end"]["best_metrics"] == {"val_iou": best}


def test_a_stop_ends_the_training_and_train_end_still_fires(state, config, data):
    class Stopper(Recorder):
        def __getattribute__(self, name):
            if name == "on_batch_end":
                self.run.stop("enough")
            return super().__getattribute__(name)

    stopper = Stopper()
    trained, history = train(state, config, data, [stopper])
    assert int(trained.step) == 1
    assert history["lr"] == []
    assert stopper.fired[-1][0] == "on_train_end"
    assert stopper.fired[-1][-1]["stop_reason"] == "enough"


def test_an_error_in_a_callback_is_raised_after_train_end(state, config, data):
    class Broken(Recorder):
        def __getattribute__(self, name):
            if name == "on_batch_begin":
                raise RuntimeError("mine")
            return super().__getattribute__(name)

    broken = Broken()
    with pytest.raises(RuntimeError, match="mine"):
        train(state, config, data, [broken])
    assert names(broken)[-1] == "on_train_end"


def test_fault_03_a_misspelt_event_is_refused_with_the_nearest_name():
    class Misspelled(Callback):
        def on_epoch_ends(self, epoch, logs=None): ...

    with pytest.raises(
        TypeError, match=r"Misspelled\.on_epoch_ends is no event; did you mean 'on_epoch_end'"
    ):
        CallbackList([Misspelled()])


def test_fault_03_wrong_arguments_are_refused_before_the_training():
    class Short(Callback):
        def on_epoch_end(self, logs=None): ...

    with pytest.raises(TypeError, match=r"Short.on_epoch_end must take \('self', 'epoch', 'logs'\)"):
        CallbackList([Short()])


async def awaited(*arguments): ...


async def awaited_in_parts(*arguments):
    yield


def iterated(*arguments):
    yield


@pytest.mark.parametrize("function", [awaited, awaited_in_parts, iterated])
def test_fault_03_an_event_that_nobody_would_await_is_refused(function):
    class Lazy(Callback):
        on_epoch_end = function

    with pytest.raises(TypeError, match=r"Lazy\.on_epoch_end must be a plain function"):
        CallbackList([Lazy()])
    with pytest.raises(TypeError, match=r"on_epoch_end=\.\.\.\) must be a plain function"):
        LambdaCallback(on_epoch_end=function)


def test_run_folders_are_never_shared_by_new_runs(config, tmp_path):
    config.runs_dir, config.name = str(tmp_path / "runs"), "spruce"
    names = [new_run_folder(config).name for _ in range(3)]
    assert names == ["spruce", "spruce-2", "spruce-3"]
    assert all((tmp_path / "runs" / name).is_dir() for name in names)


def test_runs_that_start_at_the_same_moment_get_folders_of_their_own(config, tmp_path):
    config.runs_dir, config.name = str(tmp_path), "spruce"
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(config), range(40)))
    assert len(set(folders)) == 40


def test_what_is_no_callback_is_refused():
    wrong: Any = ["mine"]
    with pytest.raises(TypeError, match=r"'mine' is no callback: derive it from forestgaps_jax\.callbacks"):
        CallbackList(iter(wrong))


def test_the_originals_example_works(state, config, capsys):
    class MyCallback(Callback):
        def on_epoch_end(self, epoch, logs=None):
            print(logs["val_metrics"]["iou"])

    drive(new_run(state, config), [MyCallback()], [scores((6, 2, 2, 10)), scores((5, 5, 0, 10))])
    assert capsys.readouterr().out.splitlines() == ["0.6", "0.5"]


def test_callbacks_are_called_in_their_order_and_see_what_the_earlier_asked_for(state, config):
    class Asks(Callback):
        def on_batch_end(self, batch, logs=None):
            self.run.save()

    class Sees(Callback):
        def on_batch_end(self, batch, logs=None):
            seen.append(self.run.save_requested)
            self.run.save_requested = False

    seen: list[bool] = []
    drive(new_run(state, config), [Asks(), Sees()], [scores()])
    assert seen == [True] * STEPS


@pytest.mark.parametrize("event", ["on_epoch_end", "on_validation_end", "on_test_end"])
def test_what_a_callback_writes_into_metrics_reaches_nobody_else(event):
    class Writes(Callback):
        def write(self, *given):
            given[-1]["val_metrics"]["threshold_metrics"][5.0].clear()
            given[-1]["val_metrics"]["iou"] = 2.0

        on_epoch_end = on_validation_end = on_test_end = write

    recorder, metrics = Recorder(), scores()
    position = [0] if event == "on_epoch_end" else []
    CallbackList([Writes(), recorder]).fire(event, *position, val_metrics=metrics)
    assert recorder.fired[-1][-1]["val_metrics"] == metrics == scores()


def test_a_callback_cannot_replace_the_state(state, config):
    run = new_run(state, config)
    with pytest.raises(AttributeError, match=r"only to read.*run\.load_weights, run\.stop or run\.save"):
        run.state = state
    assert run.state is not state


def test_weights_of_another_moment_are_copied_and_the_rest_stays(state, config):
    run = new_run(state, config)
    drive(run, [], [scores()])
    other = replace(state, params=jax.tree.map(lambda x: jnp.full_like(x, 7.0), state.params))
    optimizer = run.state.opt_state
    run.load_weights(other)
    assert weight(run.state) == 7.0
    assert int(run.state.step) == STEPS
    assert run.state.opt_state is optimizer
    for leaf in jax.tree.leaves(run.state.params):
        leaf.delete()
    assert weight(other) == 7.0


def test_what_a_loss_has_learned_belongs_to_the_weights(state, config):
    run = new_run(replace(state, loss_params={"a": jnp.zeros(2)}), config)
    run.load_weights(replace(state, loss_params={"a": jnp.ones(2)}))
    np.testing.assert_array_equal(run.state.loss_params["a"], [1.0, 1.0])


@pytest.mark.parametrize(
    "change", [lambda x: jnp.zeros((*x.shape, 1)), lambda x: [x, x]], ids=["shape", "tree"]
)
def test_weights_of_another_model_are_refused(state, config, change):
    run = new_run(state, config)
    with pytest.raises(ValueError, match="another model"):
        run.load_weights(replace(state, params=jax.tree.map(change, state.params)))
    jax.tree.map(np.testing.assert_array_equal, run.state.params, state.params)
