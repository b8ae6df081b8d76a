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
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.checkpoint.contents import arrays_of, former, host, write_record
from forestgaps_jax.checkpoint.reading import damaged_ones, set_aside
from forestgaps_jax.parallel import done_by_main, is_alone, is_main, on_one_device
from forestgaps_jax.state import TrainState


def reached_preemption(step: int) -> bool:
    """Whether the machine is to be taken away, as JAX was told; all its processes stop after this step."""
    from orbax.checkpoint import multihost

    return multihost.reached_preemption(step)


def host_trees(state: TrainState, progress: dict[str, Any] | None) -> dict[str, Any]:
    """Copies of what a checkpoint holds; on the host, for which the device is waited for.

    Of several processes each keeps what it has of the state on its devices.

    Raises:
        TypeError: a leaf of ``progress`` that is no array of numbers, or an empty one, which Orbax cannot
            write.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(progress):
        if np.asarray(leaf).dtype.kind not in "biufc" or not np.size(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TypeError(f"{name} = {leaf!r} cannot be saved: must be an array of one number or more")
    kept = {"progress": host(on_one_device(progress))} if progress else {}
    if is_alone():
        return {"state": host(arrays_of(on_one_device(state))), **kept}
    return {"state": jax.tree.map(jnp.copy, arrays_of(state)), **kept}


def begin(path: Path, trees: dict[str, Any]) -> Any:
    """Begin to write the arrays of a checkpoint beside where it belongs.

    Of several processes all begin together, in their main threads, and each writes its share; from then on
    nothing of it runs on the devices.

    Returns:
        Orbax's response, to wait for.
    """
    from orbax.checkpoint import v1 as ocp

    done_by_main(lambda: _refuse_full_disk(path.parent, trees))
    context = ocp.Context()
    # Orbax's threads would wait minutes for a folder that could not be made.
    context.asynchronous.create_directories_asynchronously = False
    with context, _quiet():
        return ocp.save_checkpointables_async(str(_new(path)), trees, overwrite=True)


def finish(
    path: Path,
    written: Any,
    step: int,
    leaves: dict[str, str],
    info: dict[str, Any],
    score: float | None,
) -> None:
    """Move a checkpoint to where it belongs when it is whole and on the disk; the main process does."""
    with _quiet():
        written.result()
    if not is_main():
        return
    new, old = _new(path), former(path)
    write_record(new, step, leaves, info, score)
    for part in [*new.rglob("*"), new]:
        _sync(part)
    if path.exists():
        remove(old)
        path.rename(old)
    new.rename(path)
    _sync(path.parent)
    remove(old)


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


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
