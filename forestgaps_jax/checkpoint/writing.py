"""Writing checkpoints: whole or not at all, and in the background while training goes on."""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from forestgaps_jax.checkpoint.contents import RECORD, as_json, leaves_of
from forestgaps_jax.checkpoint.disk import begin, finish, host_trees, prepare, reason, remove
from forestgaps_jax.checkpoint.reading import recorded_scores
from forestgaps_jax.parallel import done_by_main, is_alone, is_main
from forestgaps_jax.state import TrainState

_WAITING = 2
"""Checkpoints that may wait for the disk, as copies in memory, before a save waits for it too."""


class _Save(NamedTuple):
    step: int
    trees: dict[str, Any]
    info: dict[str, Any]
    score: float | None = None

    def begin(self, path: Path) -> Callable[[], None]:
        """Begin to write it; of several processes, all do. What is given back ends it, in any thread."""
        written = begin(path, self.trees)
        leaves = leaves_of(self.trees["state"])
        return lambda: finish(path, written, self.step, leaves, self.info, self.score)


class _Pending(NamedTuple):
    save: _Save
    finish: Callable[[], None] | None
    """None where it is not begun."""


class Checkpointer:
    """Writes checkpoints of one run in the background, and keeps the newest and the best ones.

    A save that fails, because the disk is full or the folder is gone, is logged as an error and tried again
    every ``pause`` seconds, until it succeeds or a newer one takes its place.

    Of several processes that train together all have one, of the same folder, and save at the same steps:
    each writes its share of the arrays. There a save that fails is not tried again.

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
        done_by_main(lambda: prepare(self._folder))
        self._scores = recorded_scores(self._folder)
        self._pending: deque[_Pending] = deque()
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

        Raises:
            TypeError: what is no JSON, or no array.
            RuntimeError: it is closed.
        """
        score = None if score is None or math.isnan(score) else score
        save = _Save(int(state.step), host_trees(state, progress), as_json(info), score)
        alone = is_alone()
        with self._changed:
            if self._closing:
                raise RuntimeError("the Checkpointer is closed: open another one")
            self._changed.wait_for(lambda: len(self._pending) < (_WAITING if alone else 1))
        pending = _Pending(save, None if alone else _begun(save, self._path(save)))
        with self._changed:
            self._pending.append(pending)
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
        while (pending := self._next()) is not None:
            save, last_chance = pending.save, self._closing or pending.finish is not None
            try:
                (pending.finish or save.begin(self._path(save)))()
                self._scores[save.step], self._failure = save.score, None
                self._prune()
            except Exception as error:  # a full disk comes in many types
                if self._keep_on(save, error, last_chance):
                    continue
            with self._changed:
                self._pending.popleft()
                self._changed.notify_all()

    def _next(self) -> _Pending | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            return self._pending[0] if self._pending else None

    def _keep_on(self, save: _Save, error: Exception, last_chance: bool) -> bool:
        """Whether to try a save again, after a pause that a newer one or the end cuts short."""
        self._failure = f"checkpoint {save.step} could not be written to {self._folder}: {reason(error)}"
        with self._changed:
            again = not last_chance and len(self._pending) == 1
            plan = f"next attempt in {self._pause:g} s" if again else "given up"
            logging.getLogger(__name__).error("%s; training goes on, %s", self._failure, plan)
            if again:
                self._changed.wait_for(lambda: self._closing or len(self._pending) > 1, self._pause)
        return again

    def _path(self, save: _Save) -> Path:
        return self._folder / str(save.step)

    def _prune(self) -> None:
        scored = {step: score for step, score in self._scores.items() if score is not None}
        kept = set(sorted(self._scores)[-self._keep_last :])
        kept |= set(sorted(scored, key=lambda step: (scored[step], step))[-self._keep_best :])
        for step in self._scores.keys() - kept:
            if is_main():
                remove(self._folder / str(step))
            del self._scores[step]


def _begun(save: _Save, path: Path) -> Callable[[], None]:
    """What ends a save that this begins; where it cannot be begun, what says why."""
    try:
        return save.begin(path)
    except Exception as error:
        failure = error

    def fail() -> None:
        raise failure

    return fail


def save_one(path: str | Path, state: TrainState, info: dict[str, Any]) -> None:
    """Write one checkpoint as the folder ``path``, over one that may be there; waits for the disk.

    Of several processes that train together all call it.

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
        _Save(int(state.step), host_trees(state, None), as_json(info)).begin(folder)()
    except Exception as error:
        raise OSError(f"{path} could not be written: {reason(error)}") from error
