"""Several processes that train together: which one this is, and who speaks for all."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np


def own_share() -> tuple[int, int]:
    """The number of this process and of all; (0, 1) where jax was not told of others, and is not woken."""
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def is_alone() -> bool:
    """Whether this process trains without others."""
    return own_share()[1] == 1


def is_main() -> bool:
    """Whether this process is the one that writes, logs and draws: the only one, or the first."""
    return own_share()[0] == 0


def said_by_main(say: Callable[[], str]) -> str:
    """What the main process says, in all of them. It must not ask them in turn while it thinks."""
    if is_alone():
        return say()
    from jax.experimental import multihost_utils

    words = np.frombuffer(say().encode(), np.uint8) if is_main() else np.empty(0, np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(words))))
    told = multihost_utils.broadcast_one_to_all(np.resize(words, length) if length else words)
    return np.asarray(told, np.uint8).tobytes().decode()


def done_by_main(act: Callable[[], object]) -> None:
    """Let the main process act while all wait for it.

    Raises:
        OSError: that of the main process, in all of them.
    """
    failures: list[OSError] = []

    def attempt() -> str:
        try:
            act()
        except OSError as error:
            failures.append(error)
            return str(error) or type(error).__name__
        return ""

    if words := said_by_main(attempt):
        raise failures[0] if failures else OSError(words)


def refuse_different(what: str, words: str) -> None:
    """See that all processes say the same.

    Raises:
        ValueError: they do not; in all of them.
    """
    if is_alone():
        return
    _refuse_some(
        said_by_main(lambda: words) == words, ValueError, f"{what} must be the same in all processes"
    )


def refuse_unshared(folder: Path) -> None:
    """See that all processes see the same folder.

    Raises:
        OSError: some do not; in all of them.
    """
    if is_alone():
        return
    sign = folder / f".seen-{said_by_main(lambda: os.urandom(8).hex())}"
    done_by_main(sign.touch)
    try:
        _refuse_some(
            _appears(sign), OSError, f"{folder} must be on a disk that all processes see: each writes to it"
        )
    finally:
        done_by_main(sign.unlink)


def _refuse_some(right: bool, kind: type[Exception], message: str) -> None:
    from jax.experimental import multihost_utils

    right_ones = np.ravel(multihost_utils.process_allgather(np.array(right)))
    if not right_ones.all():
        raise kind(f"{message}; not so in {np.flatnonzero(~right_ones).tolist()} of {right_ones.size}")


def _appears(path: Path) -> bool:
    """Whether a file is there, on a disk of the network perhaps a little later."""
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)
    return path.exists()


def wait_for_all(what: str) -> None:
    """Wait until all processes are here."""
    if not is_alone():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
