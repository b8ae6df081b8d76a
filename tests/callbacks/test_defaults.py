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
    VisualizationCallback,
    default_callbacks,
)


def kinds(config, on_disk) -> list[list[type]]:
    return [[type(callback) for callback in part] for part in default_callbacks(config, on_disk)]


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
    assert kinds(replace(config, **settings), on_disk) == [before, [CheckpointingCallback] if on_disk else []]


def test_early_stopping_and_profile_are_as_set(config):
    config = replace(
        config,
        use_early_stopping=True,
        early_stopping_monitor="train_iou",
        early_stopping_patience=3,
        early_stopping_restore_best=True,
        profile_steps=(4, 7),
    )
    (stopping, profiler), _ = default_callbacks(config, on_disk=False)
    assert isinstance(stopping, EarlyStoppingCallback)
    assert (stopping.monitor.name, stopping.monitor.mode) == ("train_iou", "max")
    assert (stopping.patience, stopping.restore_best) == (3, True)
    assert isinstance(profiler, Profiler)
    assert (profiler.first_step, profiler.last_step) == (4, 7)


def test_fault_03_a_users_callback_drops_none_of_the_default_ones(state, config, data, tmp_path, capsys):
    class Mine(Callback):
        def on_epoch_end(self, epoch, logs=None):
            print(logs["val_metrics"]["iou"])

    settings = replace(config, name="mine", runs_dir=str(tmp_path), use_progress_bar=True)
    _, history = train(state, settings, data, [Mine()])
    printed = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in printed[::2]] == ["epoch 1/2", "epoch 2/2"]
    assert printed[1::2] == [str(metrics["iou"]) for metrics in history["val_metrics"]]
    folder = tmp_path / "mine"
    assert json.loads((folder / "history.json").read_text())["lr"] == history["lr"]
    assert (folder / "checkpoints" / str(2 * data.train.steps_per_epoch)).is_dir()
    assert (folder / "figures" / "epoch_0002_tiles.png").is_file()


def test_fault_02_early_stopping_acts_in_a_training(state, config, data, tmp_path):
    """A network of gaps has no error in metres, so that nothing ever improves."""
    settings = replace(
        config,
        name="stopped",
        runs_dir=str(tmp_path),
        use_early_stopping=True,
        early_stopping_monitor="val_rmse",
        early_stopping_patience=1,
        vis_save_frequency=0,
        use_tensorboard=False,
    )
    trained, history = train(state, settings, data)
    steps = data.train.steps_per_epoch
    assert len(history["lr"]) == 1
    assert int(trained.step) == steps
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [str(steps)]
    log = (tmp_path / "stopped" / "train.log").read_text()
    assert "stopped: val_rmse had no finite value for 1 epochs; best val_iou 0." in log
