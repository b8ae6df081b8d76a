"""A checkpoint onto the disk: whole, or not at all."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from forestgaps_jax.checkpoint.contents import arrays_of, former, host, leaves_of, write_record
from forestgaps_jax.checkpoint.reading import damaged_ones, set_aside
from forestgaps_jax.parallel import on_one_device
from forestgaps_jax.state import TrainState


def reached_preemption(step: int) -> bool:
    """Whether the machine is to be taken away, as JAX was told; all its processes stop after this step."""
    from orbax.checkpoint import multihost

    return multihost.reached_preemption(step)


def host_trees(state: TrainState, progress: dict[str, Any] | None) -> dict[str, Any]:
    """Copies of what a checkpoint holds on the host; waits for the device.

    Raises:
        TypeError: a leaf of ``progress`` that is no array of numbers, or an empty one, which Orbax cannot
            write.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(progress):
        if np.asarray(leaf).dtype.kind not in "biufc" or not np.size(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TypeError(f"{name} = {leaf!r} cannot be saved: must be an array of one number or more")
    state, progress = on_one_device((state, progress))
    return host({"state": arrays_of(state)} | ({"progress": progress} if progress else {}))


def write(
    path: Path, step: int, trees: dict[str, Any], info: dict[str, Any], score: float | None = None
) -> None:
    """Write a checkpoint beside where it belongs, and move it there when it is whole and on the disk."""
    from orbax.checkpoint import v1 as ocp

    new, old = path.with_name(f"{path.name}.new"), former(path)
    _refuse_full_disk(path.parent, trees)
    context = ocp.Context()
    # Orbax's threads would wait minutes for a folder that could not be made.
    context.asynchronous.create_directories_asynchronously = False
    with context, _quiet():
        ocp.save_checkpointables(str(new), trees, overwrite=True)
    write_record(new, step, leaves_of(trees["state"]), info, score)
    for part in [*new.rglob("*"), new]:
        _sync(part)
    if path.exists():
        remove(old)
        path.rename(old)
    new.rename(path)
    _sync(path.parent)
    remove(old)


def prepare(folder: Path) -> None:
    """Make the folder, see that it can be written to, and clear away what a killed save has left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise OSError(f"no checkpoint can be written to {folder}: {error.strerror}") from error
    set_aside(folder, damaged_ones(folder))
    for pattern in ("*.new*", "*.old", "*.gone"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until it is on the disk, which a power cut may come before."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:  # folders of Windows
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove(folder: Path) -> None:
    """Remove a checkpoint that may be there: at once for its readers, so that none sees half of it."""
    gone = folder.with_name(f"{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


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
    logger, silence = logging.getLogger("absl"), _Silence()
    logger.addFilter(silence)
    try:
        yield
    finally:
        logger.removeFilter(silence)


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


def reason(error: Exception) -> str:
    """The words of the system where there are some in an error of Orbax, which has pages of others."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
