import math
from dataclasses import replace

import pytest

from forestgaps_jax import Callback
from forestgaps_jax import checkpoint as checkpoints
from forestgaps_jax.callbacks import CheckpointingCallback, LambdaCallback
from tests.callbacks.driving import STEPS, drive, new_run, scores, weight

LOSSES = (0.7, 0.3, 0.9, 0.5)


def steps_in(folder) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def last_two_and(*steps: int, last: int, every: int = STEPS) -> list[int]:
    return sorted({*steps, last - every, last})


@pytest.mark.parametrize(
    ("settings", "best_epoch"),
    [
        ({"monitor_metric": "val_loss"}, 2),
        ({"monitor_metric": "val_error_rate"}, 3),
        ({"monitor_metric": "val_iou"}, 3),
        ({"monitor_metric": "val_loss", "monitor_mode": "max"}, 3),
    ],
    ids=str,
)
def test_fault_02_the_best_and_the_last_epoch_are_kept(state, config, tmp_path, settings, best_epoch):
    run = new_run(state, replace(config, epochs=4, **settings), folder=tmp_path)
    cells = ((5, 3, 2, 10), (6, 2, 2, 10), (7, 1, 2, 10), (3, 3, 4, 10))
    val = [scores(c, loss=loss) for c, loss in zip(cells, LOSSES, strict=True)]
    drive(run, [CheckpointingCallback()], val)
    folder = tmp_path / "checkpoints"
    assert steps_in(tmp_path) == last_two_and(best_epoch * STEPS, last=4 * STEPS)
    assert checkpoints.best(folder) == best_epoch * STEPS
    best = checkpoints.restore(folder, state, best_epoch * STEPS)
    assert weight(best.state) == best_epoch * STEPS
    assert best.info["position"]["epoch"] == best_epoch
    assert best.info["history"]["val_loss"] == list(LOSSES[:best_epoch])
    assert best.info["config"]["thresholds"] == list(config.thresholds)


def test_an_own_metric_and_number_of_best_ones_win_over_the_settings(state, config, tmp_path):
    run = new_run(state, replace(config, epochs=4), folder=tmp_path)
    callback = CheckpointingCallback("val_loss", mode="max", max_to_keep=2)
    drive(run, [callback], [scores(loss=loss) for loss in (0.7, 0.9, 0.3, 0.5)])
    assert steps_in(tmp_path) == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]
    assert checkpoints.best(tmp_path / "checkpoints") == 2 * STEPS


class Saved(CheckpointingCallback):
    """Writes down what is saved, and writes nothing else."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.saved = []
        self._checkpointer.close()
        self._checkpointer = self

    def save(self, state, info, score, progress):
        self.saved.append((int(state.step), score))

    def close(self): ...


def saved(run, val, *before: Callback, **settings) -> list[int]:
    callback = Saved(**settings)
    drive(run, [*before, callback], val)
    return [step for step, _ in callback.saved]


def test_saved_are_every_nth_epoch_the_best_ones_and_the_last(state, config, tmp_path):
    run = new_run(state, replace(config, epochs=8, save_frequency=3), folder=tmp_path, steps=1)
    losses = (0.7, 0.8, 0.9, 0.8, 0.6, 0.9, 0.9, 0.9)
    val = [scores(loss=loss) for loss in losses]
    assert saved(run, val, monitor="val_loss") == [1, 3, 5, 6, 8]


def test_a_resumed_epoch_is_the_best_only_if_it_beats_those_before(state, config, tmp_path):
    run = new_run(state, replace(config, epochs=9, save_frequency=9), folder=tmp_path, steps=1)
    drive(run, [], [scores(loss=0.4), scores(loss=0.3)])
    drive_on = Saved("val_loss")
    drive(run, [drive_on], [scores(loss=loss) for loss in (0.35, 0.2, 0.5)], start=2)
    assert drive_on.saved == [(4, -0.2)]


def test_a_number_of_epochs_of_its_own_wins(state, config, tmp_path):
    run = new_run(state, replace(config, epochs=5), folder=tmp_path, steps=1)
    val = [scores(loss=loss) for loss in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert saved(run, val, monitor="val_loss", save_frequency=4) == [1, 4, 5]


def test_the_epoch_in_which_a_callback_stops_is_the_last(state, config, tmp_path):
    run = new_run(state, replace(config, epochs=9, save_frequency=9), folder=tmp_path, steps=1)

    class Stopper(Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.run.stop("enough")

    val = [scores(loss=loss) for loss in (0.1, 0.2, 0.3)]
    assert saved(run, val, Stopper(), monitor="val_loss") == [1, 2]


@pytest.mark.parametrize("request_of", ["save", "stop"])
def test_a_callback_may_ask_for_a_checkpoint_within_an_epoch(state, config, tmp_path, request_of):
    run = new_run(state, replace(config, epochs=2), folder=tmp_path)

    class Asker(Callback):
        def on_batch_end(self, batch, logs=None):
            if (logs["epoch"], batch) == (1, 0):
                self.run.save() if request_of == "save" else self.run.stop("the machine goes down")

    steps = saved(run, [scores(), scores()], Asker())
    asked = STEPS + 1
    assert steps == ([STEPS, asked, 2 * STEPS] if request_of == "save" else [STEPS, asked])
    assert not run.save_requested


def test_a_request_at_the_last_step_of_an_epoch_is_saved_with_its_score_after(state, config, tmp_path):
    """Written at once, and again when the epoch is scored, though the first may still be on its way."""
    run = new_run(state, replace(config, epochs=5), folder=tmp_path, steps=1)
    ask = LambdaCallback(on_batch_end=lambda batch, logs: run.save())
    losses = [0.5, 0.4, 0.3, 0.2, 0.6]
    drive(run, [ask, CheckpointingCallback("val_loss")], [scores(loss=loss) for loss in losses])
    assert steps_in(tmp_path) == [4, 5]
    assert checkpoints.restore(tmp_path / "checkpoints", state).info["history"]["val_loss"] == losses


def test_without_validation_the_last_is_the_best(state, config, tmp_path):
    drive(new_run(state, config, folder=tmp_path), [CheckpointingCallback()], [{}, {}])
    assert steps_in(tmp_path) == [STEPS, 2 * STEPS]
    assert checkpoints.best(tmp_path / "checkpoints") == 2 * STEPS


def test_an_undefined_metric_is_never_the_best(state, config, tmp_path):
    run = new_run(state, replace(config, epochs=3), folder=tmp_path, steps=1)
    drive(run, [CheckpointingCallback("val_loss")], [scores(loss=v) for v in (math.nan, 0.4, math.nan)])
    assert checkpoints.best(tmp_path / "checkpoints") == 2


def test_a_run_without_a_folder_is_not_saved_and_requests_do_not_pile_up(
    state, config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = new_run(state, config)
    run.save()
    drive(run, [CheckpointingCallback()], [scores(), scores()])
    assert not run.save_requested
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_such_a_network_has_not_is_refused_at_the_start(state, config):
    run = new_run(state, config)
    run.heights = True
    with pytest.raises(ValueError, match="val_pr_auc is of gap probabilities"):
        drive(run, [CheckpointingCallback("val_pr_auc")], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": "val_iuo"}, "did you mean 'val_iou'"),
        ({"monitor": "val_iou", "mode": "least"}, "mode = 'least'"),
        ({"mode": "min"}, "mode = 'min' without monitor"),
        ({"save_frequency": 0}, "save_frequency = 0: must be 1 or more"),
        ({"max_to_keep": 0}, "max_to_keep = 0: must be 1 or more"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_when_they_are_given(arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckpointingCallback(**arguments)
