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
from orbax.checkpoint import v1 as ocp

from forestgaps_jax.checkpoint.contents import RECORD, arrays_of, host, leaves_of, write_record
from forestgaps_jax.state import TrainState


def host_trees(state: TrainState, progress: dict[str, Any] | None) -> dict[str, Any]:
    """Copies of what a checkpoint holds on the host; waits for the device."""
    return host({"state": arrays_of(state)} | ({"progress": progress} if progress else {}))


def write(path: Path, trees: dict[str, Any], info: dict[str, Any], score: float | None) -> None:
    """Write a checkpoint beside where it belongs, and move it there when it is whole."""
    new, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    _refuse_full_disk(path.parent, trees)
    context = ocp.Context()
    # Orbax's threads would wait minutes for a folder that could not be made.
    context.asynchronous.create_directories_asynchronously = False
    with context, _quiet():
        ocp.save_checkpointables(str(new), trees, overwrite=True)
    write_record(new, leaves_of(trees["state"]), info, score)
    remove(old)
    if path.exists():
        path.rename(old)
    new.rename(path)
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
    for old in folder.glob("*.old"):
        if not old.with_suffix("").exists():  # killed between the two renames of `write`
            old.rename(old.with_suffix(""))
    for left in [*folder.glob("*.new*"), *folder.glob("*.old")]:
        remove(left)


def remove(folder: Path) -> None:
    """Remove a checkpoint: its record first, so that no half of it is taken for one."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


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


def reason(error: Exception) -> str:
    """The words of the system where there are some in an error of Orbax, which has pages of others."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
