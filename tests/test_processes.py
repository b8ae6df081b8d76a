"""Several processes train together: they come to what one comes to, stop together and go on."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from forestgaps_jax import checkpoint
from forestgaps_jax.parallel import Alarm
from tests.in_processes import GLOO, end, free_port, start, start_tasks, start_trainings
from tests.survival import SETTINGS, TRAIN, Runner

EPOCH = 17
"""Steps."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process of four devices comes to."""
    runner = Runner(tmp_path_factory.mktemp("alone"))
    [(status, _, errors)] = end([start(TRAIN, runner.folder, devices=4)])
    assert status == 0, errors[-3000:]
    return runner.run_folder


def wait_for_step(runner: Runner, step: int) -> None:
    until = time.monotonic() + 240
    while max(runner.steps(), default=0) < step:
        assert time.monotonic() < until, "no checkpoint came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes: terminated, begun again, one killed, begun again by SLURM; how they ended each time."""
    settings = SETTINGS.replace("save_minutes = 1e-9", 'save_minutes = 0.02\nshard_rasters = "always"')
    runner = Runner(tmp_path_factory.mktemp("together"), settings)
    ends, seconds = [], []
    for kind, step in ((signal.SIGTERM, 1), (signal.SIGKILL, EPOCH + 1)):
        pair = start_trainings(runner.folder)
        wait_for_step(runner, step)
        pair[1].send_signal(kind)
        sent = time.monotonic()
        ends.append(end(pair))
        seconds.append(time.monotonic() - sent)
    ends.append(end(start_tasks(runner.folder)))
    return runner.run_folder, ends, seconds


def test_a_signal_to_one_ends_all_alike(together):
    _, (terminated, _, _), _ = together
    assert [status for status, _, _ in terminated] == [143, 143]
    assert "training interrupted by SIGTERM after step" in terminated[0][2]


def test_a_killed_one_ends_the_other_with_an_error_within_a_minute(together):
    _, (_, killed, _), seconds = together
    (status, _, errors), (status_of_killed, _, _) = killed
    assert status_of_killed == -signal.SIGKILL
    assert status == -signal.SIGABRT
    assert "Terminating process because the JAX distributed service detected fatal errors" in errors
    assert seconds[1] < 60


def test_the_same_command_goes_on_also_in_tasks_of_slurm(together):
    folder, (_, second, third), _ = together
    assert [status for status, _, _ in third] == [0, 0], third[0][2][-3000:]
    assert not any("waiting" in errors for _, _, errors in third)
    for _, output, _ in (second[0], third[0]):
        assert "going on with runs/run, from step" in output
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]
    assert not list(folder.glob(".seen-*"))


def test_only_the_first_speaks_writes_and_draws(together):
    folder, ends, _ = together
    assert {GLOO.sub("", output) for _, (_, output, _) in ends} == {""}
    for first, _ in ends:
        assert "4 x cpu of 2 processes: 1 samples a step each" in first[1]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert (folder / "figures" / "history.png").exists()


def test_they_come_to_what_one_process_of_as_many_devices_comes_to(alone, together):
    histories = [json.loads((folder / "history.json").read_text()) for folder in (alone, together[0])]
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose(histories[1][name], histories[0][name], rtol=2e-4)
    counts = [
        [m["confusion_matrix"] for phase in ("train_metrics", "val_metrics") for m in history[phase]]
        for history in histories
    ]
    assert counts[1] == counts[0]
    tests = [json.loads((folder / "test_metrics.json").read_text()) for folder in (alone, together[0])]
    assert tests[1]["model"]["confusion_matrix"] == tests[0]["model"]["confusion_matrix"]


def test_all_write_a_checkpoint_and_one_process_of_one_device_reads_it(alone, together):
    folder = together[0]
    newest = folder / "checkpoints" / str(checkpoint.latest(folder / "checkpoints"))
    assert {path.name for path in (newest / "state").glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    like = Runner(alone.parents[1]).like()
    one, two = (
        jax.tree.leaves(checkpoint.restore(f / "checkpoints", like).state.params) for f in (alone, folder)
    )
    for expected, leaf in zip(one, two, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=2e-3, atol=2e-4)


# Two processes that talk


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """What two processes have told each other."""
    folder, port = tmp_path_factory.mktemp("talk"), str(free_port())
    words = ["-m", "tests.talking", port]
    ends = end([start([*words, str(i), str(folder)], folder, devices=1) for i in range(2)])
    assert [status for status, _, _ in ends] == [0, 0], ends[0][2][-3000:]
    return [json.loads(output.splitlines()[-1]) for _, output, _ in ends]


def test_each_knows_its_number_and_the_first_is_the_main_one(talk):
    assert [told["share"] for told in talk] == [[0, 2], [1, 2]]
    assert [told["main"] for told in talk] == [True, False]


def test_the_main_one_speaks_for_all(talk):
    assert [told["said"] for told in talk] == ["Forêt 0"] * 2
    assert [told["nothing"] for told in talk] == [""] * 2


def test_what_fails_in_the_main_one_fails_in_all(talk):
    assert talk[0]["failed"].startswith("FileNotFoundError: ")
    assert talk[1]["failed"].startswith("OSError: [Errno 2] No such file or directory")
    assert [told["done"] for told in talk] == [""] * 2


def test_what_differs_between_them_is_refused_in_all(talk):
    refusal = "ValueError: the seed must be the same in all processes; not so in [1] of 2"
    assert [told["different"] for told in talk] == [refusal] * 2


def test_folders_that_are_not_shared_are_refused_in_all(talk):
    for told in talk:
        assert told["unshared"].startswith("OSError: ")
        assert "must be on a disk that all processes see" in told["unshared"]
        assert told["unshared"].endswith("; not so in [1] of 2")
        assert told["shared"] == ""


def test_an_alarm_rings_in_all_at_the_same_call_and_rarely_asks(talk):
    assert talk[0]["rings"] == talk[1]["rings"]
    calls, asked = talk[0]["rings"]
    assert calls > 50
    assert asked < 40
    assert [told["rings at once"] for told in talk] == [[1, 0]] * 2


# One process


def test_alone_an_alarm_goes_by_the_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    alarm = Alarm(10.0)
    now[0] = 9.9
    assert not alarm.rings()
    now[0] = 10.0
    assert alarm.rings()
    alarm.reset()
    assert not alarm.rings()
