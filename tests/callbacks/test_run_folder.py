"""What a named run leaves on disk, and that a run without a name leaves nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest

from forestgaps_jax import Callback, Config, TrainState, create_state, evaluate, train
from forestgaps_jax import checkpoint as checkpoints
from forestgaps_jax.metrics import to_json
from forestgaps_jax.models import create_model_from_config
from tests.callbacks.driving import read_scalars
from tests.conftest import DRAWN, TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    runs = tmp_path_factory.mktemp("runs")
    config = replace(TINY, name="tiny", runs_dir=str(runs), use_progress_bar=True, **DRAWN)
    state = create_state(create_model_from_config(TINY), config)
    return runs / "tiny", config, *train(state, config, data)


def test_settings_are_written_as_used(run):
    folder, config, *_ = run
    assert Config.from_toml(folder / "config.toml") == replace(config, name=folder.name)


def test_one_json_line_an_epoch(run):
    folder, _, _, history = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["val_metrics"]["loss"] for line in lines] == history["val_loss"]
    assert lines[0]["val_metrics"]["threshold_metrics"].keys() == {"5", "15"}
    assert json.loads((folder / "history.json").read_text()) == to_json(history)


def test_a_log_to_read_and_figures_of_the_last_epoch(run):
    folder, *_ = run
    lines = [line for line in (folder / "train.log").read_text().splitlines() if line.startswith("20")]
    # Whether the step is compiled, which is told, depends on the tests before.
    lines = [line for line in lines if "the training step was" not in line]
    told = ("start at step 0", "the network", "epoch 1/2", "epoch 2/2", "end; best val_iou")
    assert [part in line for line, part in zip(lines, told, strict=True)] == [True] * 5
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {f"epoch_0002_{name}.png" for name in ("tiles", "thresholds", "history")}


def test_tensorboard_gets_the_metrics_by_threshold_the_rate_and_the_throughput(run):
    folder, _, _, history = run
    scalars = read_scalars(folder)
    for epoch in (0, 1):
        metrics = history["val_metrics"][epoch]
        assert scalars["val/iou", epoch] == np.float32(metrics["iou"])
        by_threshold = metrics["threshold_metrics"][15.0]
        assert scalars["val/recall/15m", epoch] == np.float32(by_threshold["recall"])
        assert scalars["learning_rate", epoch] == np.float32(history["lr"][epoch])
        assert scalars["tiles_per_second", epoch] > 0


def test_checkpoints_hold_the_last_and_the_best_epoch(run, data):
    folder, config, state, history = run
    ious = [metrics["iou"] for metrics in history["val_metrics"]]
    steps = [data.train.steps_per_epoch * epoch for epoch in (1, 2)]
    assert checkpoints.latest(folder / "checkpoints") == steps[-1]
    best = checkpoints.best(folder / "checkpoints")
    assert best == steps[int(np.argmax(ious))]
    restored = checkpoints.restore(folder / "checkpoints", state, best)
    assert evaluate(restored.state, config, data.val)["iou"] == max(ious)
    assert restored.info["config"]["thresholds"] == list(config.thresholds)


def test_a_run_without_a_name_writes_nothing(state: TrainState, config, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(state, config, data)
    assert list(tmp_path.iterdir()) == []


def test_training_again_under_a_name_leaves_the_first_run_alone(run, state, data):
    folder, config, *_ = run
    before = (folder / "metrics.jsonl").read_bytes()

    class Stop(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.run.stop("a test")

    part, _ = train(state, replace(config, use_progress_bar=False), data, [Stop()])
    assert (folder / "metrics.jsonl").read_bytes() == before
    second = folder.with_name("tiny-2")
    assert len((second / "metrics.jsonl").read_text().splitlines()) == 1
    assert Config.from_toml(second / "config.toml").name == "tiny-2"

    train(part, replace(config, use_progress_bar=False), data, folder=second)
    assert len((second / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_going_on_from_before_the_newest_checkpoint_of_a_folder_is_refused(run, state, data):
    folder, config, *_ = run
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"holds step \d+, later than the state's 0"):
        train(state, replace(config, learning_rate=0.5), data, folder=folder)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before | {
        folder / ".lock": b""
    }
