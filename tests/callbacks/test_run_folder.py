"""What a named run leaves on disk, and that a run without a name leaves nothing."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from forestgaps_jax import Callback, Config, TrainState, evaluate, train
from forestgaps_jax import checkpoint as checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    from flax import nnx

    from forestgaps_jax import create_model, create_state
    from tests.conftest import TINY

    runs = tmp_path_factory.mktemp("runs")
    config = replace(TINY, name="tiny", runs_dir=str(runs), use_progress_bar=True)
    model = create_model("unet_film", rngs=nnx.Rngs(TINY.seed), features=TINY.features, depth=TINY.depth)
    state, history = train(create_state(model, config), config, data)
    return runs / "tiny", config, state, history


def test_settings_are_written_as_used(run):
    folder, config, *_ = run
    assert Config.from_toml(folder / "config.toml") == replace(config, name=folder.name)


def test_one_json_line_an_epoch(run):
    folder, _, _, history = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["val_metrics"]["loss"] for line in lines] == history["val_loss"]
    assert lines[0]["val_metrics"]["threshold_metrics"].keys() == {"5", "15"}


def read_scalars(folder) -> dict[tuple[str, int], float]:
    """TensorBoard's events: records of length (8 bytes), checksum (4), data, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    raw, scalars = path.read_bytes(), {}
    while raw:
        size = struct.unpack("<Q", raw[:8])[0]
        event = Event.FromString(raw[12 : 12 + size])
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        raw = raw[16 + size :]
    return scalars


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


def test_each_epoch_prints_a_line(capsys, state, config, data):
    train(state, replace(config, use_progress_bar=True), data)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all("val_iou" in line for line in lines)


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
    with pytest.raises(ValueError, match=r"holds step \d+, later than the state's 0"):
        train(state, config, data, folder=folder)
