"""Trainings that are killed, terminated and damaged in processes of their own, as their users' are."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from forestgaps_jax import Config, TrainState, checkpoint, create_state
from forestgaps_jax.models import create_model_from_config

SETTINGS = """
name = "run"
epochs = 3
batch_size = 4
features = 2
depth = 1
tile_size = 16
split_buffer = 0.0
thresholds = [5.0, 15.0]
virtual_sites = 2
virtual_size = 64
figure_tiles = 0
vis_save_frequency = 0
gap_scores = false
use_tensorboard = false
use_droppath = true
ema_decay = 0.9
loss_type = "adaptive"
scheduler_type = "plateau"
plateau_patience = 0
use_early_stopping = true
early_stopping_patience = 9
early_stopping_restore_best = true
save_minutes = 1e-9
"""
"""A small run with all that a training can hold, which is saved after every step."""

TRAIN = ["-c", "import sys; from forestgaps_jax.cli import main; sys.exit(main())", "train", "run.toml"]
"""What Python is to run."""

_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"


def environment(**more: str) -> dict[str, str]:
    """That of a process whose compilations the next one need not repeat."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(_CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


class Runner:
    """Runs one command again and again, in one folder.

    Args:
        folder: for the settings and the run.
        settings: TOML.
    """

    def __init__(self, folder: Path, settings: str = SETTINGS):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.toml").write_text(settings)
        self.folder, self.run_folder = folder, folder / "runs" / "run"
        self.output = ""

    def start(self, **options: Any) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [sys.executable, *TRAIN],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def finish(self, **options: Any) -> int:
        """Run the command to its end; returns the exit status."""
        process = self.start(**options)
        self.output, _ = process.communicate(timeout=300)
        return process.returncode

    def interrupt(self, kind: signal.Signals, moment: float, after_step: int = 0) -> int:
        """Run the command, and send a signal so many seconds after its training begins, if it still runs.

        Args:
            kind: the signal.
            moment: seconds.
            after_step: these seconds begin when there is a checkpoint of this step or a later one.

        Returns:
            The exit status: below 0 where the signal ended it at once.
        """
        log, process = self.run_folder / "train.log", self.start()
        before = log.stat().st_size if log.exists() else 0
        while process.poll() is None and not (
            log.exists() and log.stat().st_size > before and max(self.steps(), default=0) >= after_step
        ):
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(kind)
        self.output, _ = process.communicate(timeout=300)
        return process.returncode

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there."""
        folder = self.run_folder / "checkpoints"
        there = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(path.name) for path in there if path.name.isdigit())

    def like(self) -> TrainState:
        """A state of the structure of the run's."""
        config = Config.from_toml(self.run_folder / "config.toml")
        return create_state(create_model_from_config(config), config)

    def result(self) -> dict[str, Any]:
        """What a run has come to, bit by bit, but for the time that it took."""
        folder, like = self.run_folder / "checkpoints", self.like()
        kept = {which: checkpoint.restore(folder, like, which) for which in ("latest", "best")}
        history = json.loads((self.run_folder / "history.json").read_text())
        lines = [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]
        return {
            "history": {name: values for name, values in history.items() if name != "epoch_times"},
            "lines": [{name: line[name] for name in line if name != "epoch_time"} for line in lines],
            "test": json.loads((self.run_folder / "test_metrics.json").read_text()),
            **{which: (int(saved.state.step), _digest(saved)) for which, saved in kept.items()},
        }


def _digest(saved: checkpoint.Checkpoint) -> str:
    arrays = (jax.random.key_data(saved.state.rng), vars(saved.state) | {"rng": None, "apply": None})
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((arrays, saved.progress)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def damage(folder: Path, how: str, rng: random.Random) -> Path:
    """Do to one of the files of a checkpoint what a bad disk does; says which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if how == "bit flipped":
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif how == "cut off":
        path.write_bytes(content[:place])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "file gone":
        path.unlink()
    elif how == "folder emptied":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        raise ValueError(how)
    return path


DAMAGES = ("bit flipped", "cut off", "emptied", "file gone", "folder emptied")
