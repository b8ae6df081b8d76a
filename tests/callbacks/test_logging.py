import json
import logging
import math
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Config
from forestgaps_jax.callbacks import LambdaCallback, LoggingCallback
from forestgaps_jax.metrics import to_json
from tests.callbacks.driving import drive, new_run, read_events, read_scalars, scores


@pytest.fixture
def run(state, config, tmp_path):
    return new_run(state, config, folder=tmp_path)


def test_fault_01_tensorboard_gets_scalars_only_whatever_a_callback_adds(run, tmp_path):
    odd = {
        "note": "fine", "shape": (3, 4), "map": np.zeros((2, 2)), "flag": True, "none": None,
        "ragged": [[1], []], "undefined": math.nan, "table": {"a": 1.0},
        "count": 7, "f32": np.float32(0.25), "jax": jnp.float32(0.5),
    }  # fmt: skip
    drive(run, [LoggingCallback()], [scores(**odd)])
    scalars = read_scalars(tmp_path)
    added = {tag: value for (tag, _), value in scalars.items() if tag.partition("/")[2] in odd}
    assert added == {"val/count": 7, "val/f32": 0.25, "val/jax": 0.5}
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    written = json.loads(line)["val_metrics"]
    assert written["map"] == [[0, 0], [0, 0]]
    assert (written["f32"], written["note"], written["undefined"]) == (0.25, "fine", None)


def test_fault_01_the_settings_are_written_as_used_and_as_text(run, config, tmp_path):
    run.config = replace(config, threshold_weight_adjustment={5.0: 2.0}, profile_steps=(1, 2))
    drive(run, [LoggingCallback()], [])
    assert Config.from_toml(tmp_path / "config.toml") == replace(
        run.config, name=tmp_path.name, runs_dir=str(tmp_path.parent)
    )
    (text,) = (v for (tag, _), v in read_events(tmp_path).items() if tag.startswith("config"))
    assert "batch_size = 4" in text.tensor.string_val[0].decode()


def test_tags_are_those_that_are_documented(run, tmp_path):
    regression = {"mse": 4.0, "rmse": 2.0, "bias": math.nan, "n_pixels": 7.0}
    val = scores(regression=regression, pr_auc=0.9)
    val["threshold_metrics"][5.0]["pr_auc"] = 0.8
    drive(run, [LoggingCallback()], [val])
    scalars = read_scalars(tmp_path)
    expected = {
        "train/loss": 0.4, "val/loss": 0.5, "val/iou": 0.6, "val/mcc": val["mcc"], "val/pr_auc": 0.9,
        "val/rmse": 2.0, "val/mse": 4.0, "val/iou/15m": 21 / 55, "val/recall/5m": 11 / 18,
        "val/pr_auc/5m": 0.8, "train/precision/15m": 21 / 38, "learning_rate": 0.1,
    }  # fmt: skip
    for tag, value in expected.items():
        assert scalars[tag, 0] == pytest.approx(value, rel=1e-6), tag
    assert scalars["tiles_per_second", 0] > 0
    assert scalars["val/n_pixels", 0] == val["n_pixels"]
    tags = {tag for tag, _ in scalars}
    assert "val/bias" not in tags
    assert not {tag for tag in tags if "confusion" in tag or tag.startswith("val/n_samples")}


def test_the_log_is_a_line_at_the_start_one_an_epoch_and_one_at_the_end(run, tmp_path):
    drive(run, [LoggingCallback()], [scores(), scores(loss=0.25)])
    first, *epochs, last = (tmp_path / "train.log").read_text().splitlines()
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    for part in ("start at step 0: unet_film", f"{weights} weights", "3 steps an epoch, 2 epochs", "jax 0."):
        assert part in first
    assert ["epoch 1/2  loss 0.4000  iou 0.600" in line for line in epochs] == [True, False]
    assert "epoch 2/2" in epochs[1]
    assert "val_loss 0.2500  val_iou 0.600" in epochs[1]
    assert "end; best val_iou 0.75; " in last


def test_the_log_says_why_a_training_stopped_and_shows_the_models_summary(run, tmp_path):
    callback = LoggingCallback()
    callback.run = run
    weights = {5.0: 0.75, 12.5: 1.25}
    callback.on_train_begin({"model_summary": "U-Net\n4 features", "threshold_weights": weights})
    logs = {"history": run.history, "best_metrics": {"val_iou": None}, "stop_reason": "the night is over"}
    callback.on_train_end(logs)
    text = (tmp_path / "train.log").read_text()
    assert "the network\n  U-Net\n  4 features\n" in text
    assert "threshold weights: 5 m 0.75, 12.5 m 1.25\n" in text
    assert "stopped: the night is over; best val_iou None" in text


def test_the_history_is_kept_whole_over_an_interruption(state, config, tmp_path):
    first = new_run(state, config, folder=tmp_path)
    drive(first, [LoggingCallback()], [scores(loss=0.5), scores(loss=0.4)])
    assert json.loads((tmp_path / "history.json").read_text()) == to_json(first.history)
    drive(new_run(state, config, folder=tmp_path), [LoggingCallback()], [scores(loss=0.3)], start=2)
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["val_loss"] == [0.5, 0.4, 0.3]
    assert history["epoch_times"] == [2.0, 3.0, 4.0]
    assert {len(values) for values in history.values()} == {3}


def test_the_history_is_whole_in_a_new_folder_too(state, config, tmp_path):
    first = new_run(state, config)
    drive(first, [], [scores(loss=0.5), scores(loss=0.4)])
    second = new_run(state, config, folder=tmp_path)
    second.history = first.history
    drive(second, [LoggingCallback()], [scores(loss=0.3)], start=2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    history = json.loads((tmp_path / "history.json").read_text())
    assert history == to_json(second.history)
    assert history["val_loss"] == [0.5, 0.4, 0.3]


def test_other_callbacks_write_to_the_same_events_until_the_end(run, tmp_path):
    write = LambdaCallback(on_epoch_end=lambda epoch, logs: run.events.add_scalar("mine", 3.0, epoch))
    drive(run, [LoggingCallback(), write], [scores()])
    assert read_scalars(tmp_path)["mine", 0] == 3.0
    assert run.events is None


def test_each_tag_is_written_once_an_epoch_and_no_rate_that_is_not_known(run):
    written = []

    class Events:
        def add_scalar(self, tag, value, step):
            written.append(tag)

        def flush(self): ...

        def close(self): ...

    callback = LoggingCallback()
    callback.run = run
    callback.on_train_begin()
    callback._events = Events()
    callback.on_epoch_begin(0)
    metrics = scores(regression={"rmse": 1.0, "n_pixels": 3.0})
    logs = {"train_metrics": metrics, "val_metrics": metrics, "lr": math.nan}
    callback.on_epoch_end(0, {**logs, "improved": False, "epoch_time": 1.0})
    assert len(written) == len(set(written))
    assert {"train/n_pixels", "val/rmse"} <= set(written)
    assert "learning_rate" not in written


def test_without_validation_there_are_no_validation_tags(run, tmp_path):
    drive(run, [LoggingCallback()], [{}])
    assert not [tag for tag, _ in read_scalars(tmp_path) if tag.startswith("val/")]


@pytest.mark.parametrize("missing", [False, True], ids=["switched off", "not installed"])
def test_without_tensorboard_the_rest_is_written(run, config, tmp_path, monkeypatch, caplog, missing):
    run.config = replace(config, use_tensorboard=missing)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with caplog.at_level(logging.WARNING):
        drive(run, [LoggingCallback()], [scores()])
    assert ("pip install tensorboardX" in caplog.text) == missing
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.toml", "history.json", "metrics.jsonl", "train.log"
    ]  # fmt: skip


def test_a_run_without_a_folder_writes_nothing(state, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = new_run(state, config)
    drive(run, [LoggingCallback()], [scores()])
    assert list(tmp_path.iterdir()) == []
