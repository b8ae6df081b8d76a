"""Several processes that train together: how they find each other, and who speaks for all."""

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

_log = logging.getLogger(__name__)

_SILENCE = 20
"""Seconds without a word of a process after which the others take it for dead."""

_PATIENCE = 300
"""Seconds that a process waits for the others at the start."""


def join_processes(distributed: str, process_id: int | None = None, process_count: int | None = None) -> None:
    """Be one of several processes that train together, on one machine or on many.

    To be called before anything asks jax for its devices. From then on a process that has lost another one
    is ended by jax, with exit code 134.

    Args:
        distributed: ``"off"``: be alone; ``"auto"``: as TPU VMs, SLURM or Open MPI tell; or the address
            ``host:port`` of the first process.
        process_id: number of this process, from 0, where an address is given.
        process_count: how many there are, likewise.

    Raises:
        ValueError: an address without both numbers, or these without an address; nothing tells of others.
        ConnectionError: the first process is not at its address.
    """
    numbers = {"process_id": process_id, "process_count": process_count}
    if distributed == "off":
        _refuse_numbers(distributed, numbers)
        return
    patience: dict[str, Any] = {"heartbeat_timeout_seconds": _SILENCE, "shutdown_timeout_seconds": _SILENCE}
    patience |= {"initialization_timeout": _PATIENCE}
    if distributed == "auto":
        _refuse_numbers(distributed, numbers)
        _join_as_told(patience)
    else:
        _join_at(distributed, process_id, process_count, patience)
    # On CPUs, collectives of two programs at once would wait for each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _join_at(
    address: str, process_id: int | None, process_count: int | None, patience: dict[str, Any]
) -> None:
    host, port = _address(address)
    if process_id is None or process_count is None or not 0 <= process_id < process_count:
        raise ValueError(
            f"process_id = {process_id}, process_count = {process_count}: an address needs both, the first "
            "from 0 to one below the second"
        )
    if process_id == 0:
        _log.info("waiting for %d more process(es) at %s", process_count - 1, address)
    else:
        _wait_for(host, port)
    jax.distributed.initialize(address, process_count, process_id, **patience)


def _join_as_told(patience: dict[str, Any]) -> None:
    try:
        jax.distributed.initialize(**patience)
    except ValueError:
        raise ValueError(
            "distributed = 'auto': nothing here tells of other processes, as TPU VMs, SLURM and Open MPI do; "
            "give the address host:port of the first one, process_id and process_count"
        ) from None


def _refuse_numbers(distributed: str, numbers: dict[str, int | None]) -> None:
    for name, number in numbers.items():
        if number is not None:
            raise ValueError(
                f"{name} = {number}: goes with an address, not with distributed = {distributed!r}"
            )


def _address(distributed: str) -> tuple[str, int]:
    host, _, port = distributed.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"distributed = {distributed!r}: must be 'off', 'auto' or host:port")
    return host.strip("[]"), int(port)


def _wait_for(host: str, port: int) -> None:
    """Wait until the first process is there, for which jax would wait and then abort without a word."""
    end, reason = time.monotonic() + _PATIENCE, ""
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            reason = str(error)
            time.sleep(0.2)
    raise ConnectionError(f"the first process was not at {host}:{port} within {_PATIENCE} s: {reason}")


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
