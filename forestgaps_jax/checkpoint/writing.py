"""Writing checkpoints: whole or not at all, and in the background while training goes on."""

import errno
import logging
import math
import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from forestgaps_jax.checkpoint.contents import RECORD, arrays_of, host, leaves_of, write_record
from forestgaps_jax.checkpoint.reading import recorded_scores
from forestgaps_jax.state import TrainState

_WAITING = 2
"""Checkpoints that may wait for the disk, as copies in memory, before a save waits for it too."""


class _Save(NamedTuple):
    step: int
    trees: dict[str, Any]
    info: dict[str, Any]
    score: float | None


class Checkpointer:
    """Writes checkpoints of one run in the background, and keeps the newest and the best ones.

    A save that fails, because the disk is full or the folder is gone, is logged as an error and tried again
    every ``pause`` seconds, until it succeeds or a newer one takes its place.

    Use it as a context manager: leaving it waits for the last save.

    Args:
        folder: where checkpoints lie, one subfolder a step; made if it is missing.
        keep_best: how many of the best to keep.
        keep_last: how many of the newest to keep; with two, one is left where the newest is damaged.
        pause: seconds between a save that failed and the next attempt.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, keep_best: int = 1, keep_last: int = 2, *, pause: float = 10.0):
        self._folder = Path(folder).absolute()
        self._keep_best, self._keep_last, self._pause = keep_best, keep_last, pause
        _prepare(self._folder)
        self._scores = recorded_scores(self._folder)
        self._pending: deque[_Save] = deque()
        self._changed = threading.Condition()
        self._closing, self._failure = False, None
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def save(
        self,
        state: TrainState,
        info: dict[str, Any],
        score: float | None = None,
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Copy the state to the host, and leave it to be written.

        Args:
            state: what to save.
            info: JSON to save beside it.
            score: how good it is, the higher the better; None or NaN never makes it the best.
            progress: further arrays, in dictionaries and lists.
        """
        score = None if score is None or math.isnan(score) else score
        save = _Save(int(state.step), _trees(state, progress), info, score)
        with self._changed:
            self._changed.wait_for(lambda: len(self._pending) < _WAITING)
            self._pending.append(save)
            self._changed.notify_all()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save.

        Raises:
            OSError: it could not be written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._failure is not None:
            raise OSError(self._failure)

    def _work(self) -> None:
        while (save := self._next()) is not None:
            last_chance = self._closing
            try:
                _write(self._folder / str(save.step), save.trees, save.info, save.score)
                self._scores[save.step], self._failure = save.score, None
                self._prune()
            except Exception as error:  # a full disk comes in many types
                if self._keep_on(save, error, last_chance):
                    continue
            with self._changed:
                self._pending.popleft()
                self._changed.notify_all()

    def _next(self) -> _Save | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            return self._pending[0] if self._pending else None

    def _keep_on(self, save: _Save, error: Exception, last_chance: bool) -> bool:
        """Whether to try a save again, after a pause that a newer one or the end cuts short."""
        self._failure = f"checkpoint {save.step} could not be written to {self._folder}: {_reason(error)}"
        with self._changed:
            again = not last_chance and len(self._pending) == 1
            plan = f"next attempt in {self._pause:g} s" if again else "given up"
            logging.getLogger(__name__).error("%s; training goes on, %s", self._failure, plan)
            if again:
                self._changed.wait_for(lambda: self._closing or len(self._pending) > 1, self._pause)
        return again

    def _prune(self) -> None:
        scored = {step: score for step, score in self._scores.items() if score is not None}
        kept = set(sorted(self._scores)[-self._keep_last :])
        kept |= set(sorted(scored, key=lambda step: (scored[step], step))[-self._keep_best :])
        for step in self._scores.keys() - kept:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
            del self._scores[step]


def save_one(path: str | Path, state: TrainState, info: dict[str, Any]) -> None:
    """Write one checkpoint as the folder ``path``, over one that may be there; waits for the disk.

    Args:
        path: a folder that is, or will be, this checkpoint.
        state: what to save.
        info: JSON to save beside it.

    Raises:
        FileExistsError: at the path lies something that is no checkpoint; it is left alone.
        OSError: it could not be written; one that was there stays.
    """
    folder = Path(path).absolute()
    if folder.exists() and not (folder / RECORD).exists():
        raise FileExistsError(f"{path} exists and is no checkpoint: give another path")
    try:
        _write(folder, _trees(state, None), info, None)
    except Exception as error:
        raise OSError(f"{path} could not be written: {_reason(error)}") from error


def _trees(state: TrainState, progress: dict[str, Any] | None) -> dict[str, Any]:
    return host({"state": arrays_of(state)} | ({"progress": progress} if progress else {}))


def _write(path: Path, trees: dict[str, Any], info: dict[str, Any], score: float | None) -> None:
    """Write a checkpoint beside where it belongs, and move it there when it is whole."""
    new, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    _refuse_full_disk(path.parent, trees)
    context = ocp.Context()
    # Orbax's threads would wait minutes for a folder that could not be made.
    context.asynchronous.create_directories_asynchronously = False
    with context, _quiet():
        ocp.save_checkpointables(str(new), trees, overwrite=True)
    write_record(new, leaves_of(trees["state"]), info, score)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _prepare(folder: Path) -> None:
    """Make the folder, see that it can be written to, and clear away what a killed save has left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise OSError(f"no checkpoint can be written to {folder}: {error.strerror}") from error
    for left in [*folder.glob("*.orbax-checkpoint-tmp*"), *folder.glob("*.new*"), *folder.glob("*.old")]:
        shutil.rmtree(left, ignore_errors=True)


def _refuse_full_disk(folder: Path, trees: dict[str, Any]) -> None:
    """Orbax leaves long traces where a disk is full: look first."""
    needed, left = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)), shutil.disk_usage(folder).free
    if left < needed:
        raise OSError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes are needed, {left} are left"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax's threads log every error several times, with what they did; it is told once, by us."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """The words of the system where there are some in an error of Orbax, which has pages of others."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
