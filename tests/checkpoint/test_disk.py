"""Disks that are full, folders that are read-only: told, borne, and tried again."""

import json
import logging
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from forestgaps_jax import Callback, train
from forestgaps_jax.checkpoint import Checkpointer, best, latest, restore, restore_one, save_one
from tests.checkpoint.test_reading import at_step, new_state
from tests.survival import SETTINGS, Runner
from tests.test_loop import equal

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@contextmanager
def full_disk(left: int = 2000) -> Iterator[None]:
    """No file of this process can grow beyond ``left`` bytes, as on a disk that has no more room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder) -> Iterator[None]:
    """The folder cannot be written to; root, who could, is nobody for that time."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_save_that_finds_the_disk_full_is_tried_until_there_is_room(tmp_path, caplog):
    state = new_state()
    with Checkpointer(tmp_path, pause=0.05) as checkpointer:
        checkpointer.save(at_step(state, 1), {}, 0.5)
        wait_for(lambda: latest(tmp_path) == 1)
        with full_disk():
            checkpointer.save(at_step(state, 2), {"epoch": 2}, 0.7)
            wait_for(lambda: len(caplog.records) >= 2)
            assert (latest(tmp_path), best(tmp_path)) == (1, 1)
            restore(tmp_path, state)
    assert (latest(tmp_path), best(tmp_path)) == (2, 2)
    assert restore(tmp_path, state).info == {"epoch": 2}
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert f"checkpoint 2 could not be written to {tmp_path}: " in caplog.text
    assert "training goes on, next attempt in 0.05 s" in caplog.text


def test_on_a_full_disk_a_newer_save_takes_the_place_of_one_that_waits(tmp_path, caplog):
    with Checkpointer(tmp_path, pause=60.0) as checkpointer, full_disk():
        checkpointer.save(at_step(new_state(), 1), {})
        wait_for(lambda: "next attempt in 60 s" in caplog.text)
        checkpointer.save(at_step(new_state(), 2), {})
        wait_for(lambda: "given up" in caplog.text)
    assert latest(tmp_path) == 2
    assert not (tmp_path / "1").exists()


def test_what_can_be_written_at_no_time_is_an_error_at_the_end_and_harms_nothing(tmp_path):
    checkpointer = Checkpointer(tmp_path, pause=60.0)
    checkpointer.save(at_step(new_state(), 1), {}, 0.9)
    wait_for(lambda: latest(tmp_path) == 1)
    with full_disk():
        checkpointer.save(at_step(new_state(), 2), {})
        with pytest.raises(OSError, match="checkpoint 2 could not be written"):
            checkpointer.close()
    assert (latest(tmp_path), best(tmp_path)) == (1, 1)


def test_one_checkpoint_that_cannot_be_written_over_another_leaves_it(tmp_path):
    save_one(tmp_path / "one", at_step(new_state(), 1), {"epoch": 1})
    with full_disk(), pytest.raises(OSError, match="one could not be written"):
        save_one(tmp_path / "one", at_step(new_state(), 2), {"epoch": 2})
    assert restore_one(tmp_path / "one", new_state()).info == {"epoch": 1}


def test_a_read_only_folder_is_refused_at_the_start(tmp_path, state, config, data):
    with read_only(tmp_path):
        with pytest.raises(OSError, match=f"no checkpoint can be written to {tmp_path}/checkpoints"):
            Checkpointer(tmp_path / "checkpoints")
        with pytest.raises(OSError, match="Permission denied"):
            train(state, config, data, folder=tmp_path)


def test_a_line_that_a_full_disk_has_cut_off_costs_nothing_else(tmp_path, state, config, data, caplog):
    class Disk(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                stack.enter_context(full_disk((tmp_path / "metrics.jsonl").stat().st_size + 100))
            if epoch == 2:
                stack.close()

    with ExitStack() as stack:
        trained, history = train(state, replace(config, epochs=3), data, [Disk()], folder=tmp_path)
    assert latest(tmp_path / "checkpoints") == int(trained.step)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in (lines[0], lines[2])] == [0, 2]
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(lines[1])
    assert json.loads((tmp_path / "history.json").read_text())["val_loss"] == history["val_loss"]


def test_a_training_outlives_a_full_disk(tmp_path, state, config, data, caplog):
    """Logs, figures, metrics and checkpoints of the second epoch find no room; the third has some again."""

    class Disk(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                stack.enter_context(full_disk(0))
            if epoch == 2:
                stack.close()

    config = replace(config, epochs=3, vis_save_frequency=1, figure_tiles=1)
    with ExitStack() as stack:
        trained, history = train(state, config, data, [Disk()], folder=tmp_path)
    expected, expected_history = train(state, replace(config, name=""), data)
    assert equal(trained, expected)
    assert history["val_loss"] == expected_history["val_loss"]
    assert latest(tmp_path / "checkpoints") == int(trained.step)
    for what in ("checkpoint", "metrics.jsonl", "train.log", "figure tiles"):
        assert f"{what} " in caplog.text


@pytest.fixture
def small_disk(tmp_path) -> Iterator:
    """A disk of its own that can be filled up."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a disk here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_the_command_tells_of_a_full_disk_and_goes_on_when_there_is_room(small_disk):
    settings = SETTINGS.replace("use_tensorboard = false", "use_tensorboard = true")
    runner = Runner(small_disk, settings.replace("epochs = 3", "epochs = 1"))
    assert runner.finish() == 1
    assert "could not be written" in runner.output
    assert "No space left" in runner.output or "ENOSPC" in runner.output
    assert "Traceback" not in runner.output.split("epoch 1/1")[-1]
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert runner.finish() == 0, runner.output
    assert np.isfinite(runner.result()["history"]["val_loss"]).all()
