"""How several processes that train together find each other."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Timer
from typing import Any

import jax

from forestgaps_jax.host import run_in_calling_thread

_log = logging.getLogger(__name__)

_SILENCE = 20
"""Seconds without a word of a process after which the others take it for dead."""

_PATIENCE = 300
"""Seconds that a process waits for the others at the start."""

_A_WHILE = 10.0
"""Seconds after which a process that waits for others says so."""


def join_processes(distributed: str, process_id: int | None = None, process_count: int | None = None) -> None:
    """Be one of several processes that train together, on one machine or on many.

    To be called before anything asks jax for its devices. From then on a process that has lost another one
    is ended by jax, with exit code 134; so is one that has waited five minutes for all to come.

    Args:
        distributed: ``"off"``: be alone; ``"auto"``: as TPU VMs, SLURM or Open MPI 4 tell; or the
            address ``host:port`` of the first process.
        process_id: number of this process, from 0, where an address is given.
        process_count: how many there are, likewise.

    Raises:
        ValueError: an address without both numbers, or these without an address; nothing tells of others,
            or not in a way that jax understands.
        ConnectionError: the first process is not at its address.
        OSError: this is the first process, and something else is at its address.
    """
    numbers = {"process_id": process_id, "process_count": process_count}
    if distributed == "off":
        _refuse_numbers(distributed, numbers)
        return
    options: dict[str, Any] = {"heartbeat_timeout_seconds": _SILENCE, "shutdown_timeout_seconds": _SILENCE}
    options |= {"initialization_timeout": _PATIENCE, "local_device_ids": gpus_of_task(os.environ)}
    if distributed == "auto":
        _refuse_numbers(distributed, numbers)
        _join_as_told(options)
    else:
        _join_at(distributed, process_id, process_count, options)
    _keep_cpus_in_step()


def _join_at(
    address: str, process_id: int | None, process_count: int | None, options: dict[str, Any]
) -> None:
    host, port = _address(address)
    if process_id is None or process_count is None or not 0 <= process_id < process_count:
        raise ValueError(
            f"process_id = {process_id}, process_count = {process_count}: an address needs both, the first "
            "from 0 to one below the second"
        )
    with _telling(f"not all of {process_count} processes are at {address} yet"):
        if process_id == 0:
            _refuse_taken(port)
        else:
            _wait_for(host, port)
        jax.distributed.initialize(address, process_count, process_id, **options)


def _join_as_told(options: dict[str, Any]) -> None:
    try:
        with _telling("not all of the processes that the cluster tells of are there yet"):
            jax.distributed.initialize(**options)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = str(error)
        if "coordinator_address" in reason:
            reason = (
                "nothing here tells of other processes, as TPU VMs, SLURM (within srun) and Open MPI 4 do"
            )
        raise ValueError(
            f"distributed = 'auto': {reason}; instead, give the address host:port of the first process, "
            "process_id and process_count"
        ) from None


def _keep_cpus_in_step() -> None:
    # Collectives of two programs at once would wait for each other.
    run_in_calling_thread()
    if jax.default_backend() == "cpu":
        # Of what was compiled before, process 0 alone finds its own, and may then begin the collectives of a
        # step in another order than the others, who compile it anew: all would wait for ever.
        jax.config.update("jax_enable_compilation_cache", False)


def gpus_of_task(environment: Mapping[str, str]) -> list[int] | None:
    """GPUs of a SLURM task where jax would take others, by their numbers among those that it sees.

    jax takes one, of the task's number on its node. That one is not there where SLURM lets each task see its
    own alone, and the others would idle where a node has one task.

    Returns:
        None leaves it to jax.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if "SLURM_LOCALID" not in environment or "JAX_LOCAL_DEVICE_IDS" in environment or not visible:
        return None
    count, tasks = len(visible.split(",")), environment.get("SLURM_NTASKS")
    one_on_each_node = tasks is not None and tasks == environment.get("SLURM_STEP_NUM_NODES")
    return list(range(count)) if count == 1 or one_on_each_node else None


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


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Warn, once, where it takes a while."""
    timer = Timer(_A_WHILE, _log.warning, ["%s: waiting, for at most %g s", what, _PATIENCE])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _refuse_taken(port: int) -> None:
    """Where something listens to the port already, jax would end with a segmentation fault."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise OSError(f"port {port} of this machine cannot be taken: {error.strerror}") from error


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
