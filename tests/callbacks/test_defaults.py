import json
from dataclasses import replace

import pytest

from forestgaps_jax import Callback, train
from forestgaps_jax.callbacks import (
    CheckpointingCallback,
    EarlyStoppingCallback,
    LoggingCallback,
    Profiler,
    ProgressBar,
    Timer,
    VisualizationCallback,
    with_defaults,
)
from tests.callbacks.driving import HISTORY
from tests.conftest import DRAWN


def kinds(config, on_disk, own=()) -> list[type]:
    return [type(callback) for callback in with_defaults(config, on_disk, own)]


@pytest.mark.parametrize(
    ("settings", "on_disk", "before"),
    [
        ({}, False, []),
        ({}, True, [LoggingCallback, VisualizationCallback]),
        ({"use_progress_bar": True}, False, [ProgressBar]),
        ({"vis_save_frequency": 0}, True, [LoggingCallback]),
        ({"use_early_stopping": True}, False, [EarlyStoppingCallback]),
        ({"profile_steps": (1, 2), "vis_save_frequency": 0}, True, [LoggingCallback, Profiler]),
        (
            {"use_progress_bar": True, "use_early_stopping": True},
            True,
            [ProgressBar, LoggingCallback, EarlyStoppingCallback, VisualizationCallback],
        ),
    ],
    ids=str,
)
def test_the_settings_say_what_comes_before_the_users_own(config, settings, on_disk, before):
    own, last = Timer(), [CheckpointingCallback] if on_disk else []
    assert kinds(replace(config, **{**DRAWN, **settings}), on_disk, [own]) == [*before, Timer, *last]


class Own(LoggingCallback):
    """A user's own kind of a default callback."""


def test_fault_03_a_users_own_replaces_the_default_of_its_kind(config):
    config = replace(config, use_progress_bar=True, use_early_stopping=True)
    own = [Own(), EarlyStoppingCallback("train_loss"), ProgressBar(), VisualizationCallback(2)]
    assert with_defaults(config, True, iter(own))[:4] == own
    assert kinds(config, True, own) == [*map(type, own), CheckpointingCallback]


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_users_own_checkpoints_come_last_and_alone(config, on_disk):
    own = CheckpointingCallback("val_loss")
    callbacks = with_defaults(replace(config, vis_save_frequency=0), on_disk, [own, Timer()])
    assert callbacks[-1] is own
    assert [type(c) for c in callbacks[:-1]] == [*[LoggingCallback] * on_disk, Timer]


def test_two_checkpointings_of_one_folder_are_refused(config):
    with pytest.raises(ValueError, match="hold 2 CheckpointingCallback for one run folder: give one"):
        with_defaults(config, True, [CheckpointingCallback(), CheckpointingCallback("val_loss")])


def test_early_stopping_and_profile_are_as_set(config):
    config = replace(
        config,
        use_early_stopping=True,
        early_stopping_monitor="train_iou",
        early_stopping_patience=3,
        early_stopping_restore_best=True,
        profile_steps=(4, 7),
    )
    stopping, profiler = with_defaults(config, on_disk=False, callbacks=())
    assert isinstance(stopping, EarlyStoppingCallback)
    assert (stopping.monitor.name, stopping.monitor.mode) == ("train_iou", "max")
    assert (stopping.patience, stopping.restore_best) == (3, True)
    assert isinstance(profiler, Profiler)
    assert (profiler.first_step, profiler.last_step) == (4, 7)


def test_fault_03_a_users_callback_drops_none_of_the_default_ones(state, config, data, tmp_path, capsys):
    class Mine(Callback):
        def on_epoch_end(self, epoch, logs=None):
            print(logs["val_metrics"]["iou"])

    settings = replace(config, name="mine", runs_dir=str(tmp_path), use_progress_bar=True, **DRAWN)
    _, history = train(state, settings, data, [Mine()])
    # Whether the step is compiled, which is told, depends on the tests before.
    lines = capsys.readouterr().out.splitlines()
    printed = [line for line in lines if not line.startswith("the training step was")]
    assert [line[:9] for line in printed[::2]] == ["epoch 1/2", "epoch 2/2"]
    assert printed[1::2] == [str(metrics["iou"]) for metrics in history["val_metrics"]]
    folder = tmp_path / "mine"
    assert json.loads((folder / "history.json").read_text())["lr"] == history["lr"]
    assert (folder / "checkpoints" / str(2 * data.train.steps_per_epoch)).is_dir()
    assert (folder / "figures" / "epoch_0002_tiles.png").is_file()


def test_fault_02_early_stopping_acts_in_a_training(state, config, data, tmp_path):
    """No loss is below the 0 of the epoch before, so that nothing ever improves."""
    settings = replace(
        config,
        name="stopped",
        runs_dir=str(tmp_path),
        use_early_stopping=True,
        early_stopping_monitor="val_loss",
        early_stopping_patience=1,
        vis_save_frequency=0,
        use_tensorboard=False,
    )
    before = {name: [{"loss": 0.0}] if "metrics" in name else [0.0] for name in HISTORY}
    trained, history = train(state, settings, data, history=before)
    steps = data.train.steps_per_epoch
    assert len(history["lr"]) == 2
    assert int(trained.step) == steps
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [str(steps)]
    log = (tmp_path / "stopped" / "train.log").read_text()
    assert "stopped: val_loss has not improved on its 0 of epoch 1 for 1 epochs; best val_iou 0." in log
