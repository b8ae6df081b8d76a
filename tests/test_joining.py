"""Processes find each other, by an address or by what a cluster tells; or say why not.

Trainings of both kinds are in `test_processes.py`.
"""

import re
import signal
import socket
import time

import pytest

from forestgaps_jax.parallel import join_processes, joining
from tests.in_processes import end, free_port, start
from tests.survival import TRAIN, Runner


def test_auto_without_a_cluster_is_refused(tmp_path):
    Runner(tmp_path)
    [(status, output, errors)] = end([start([*TRAIN, "--distributed", "auto"], tmp_path)])
    assert (status, output) == (1, "")
    assert errors == (
        "forestgaps-jax train: distributed = 'auto': nothing here tells of other processes, as TPU VMs, "
        "SLURM (within srun) and Open MPI 4 do; instead, give the address host:port of the first process, "
        "process_id and process_count\n"
    )


@pytest.mark.parametrize("error", [ValueError("invalid literal"), RuntimeError("Could not parse")])
def test_a_cluster_that_jax_does_not_understand_is_refused(monkeypatch, error):
    def initialize(**options):
        raise error

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(ValueError, match=f"distributed = 'auto': {error}; instead, give the address"):
        join_processes("auto")


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "3"}, [0]),  # srun --gpus-per-task=1
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
        ({"SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1"} | {"SLURM_NTASKS": "2"}, None),
        (
            {"SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1"}
            | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"},
            [0, 1],
        ),
        ({"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "3", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
        ({"SLURM_LOCALID": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_a_task_takes_the_gpus_that_are_its_own(variables, gpus):
    assert joining.gpus_of_task(variables) == gpus


# The first process, or the others, are late


def test_who_waits_for_a_while_says_so_on_the_console(tmp_path):
    Runner(tmp_path)
    code = f"from forestgaps_jax.parallel import joining; joining._A_WHILE = 0.1; {TRAIN[1]}"
    address = f"localhost:{free_port()}"
    words = ["--distributed", address, "--process-id", "0", "--process-count", "2"]
    process = start(["-c", code, *TRAIN[2:], *words], tmp_path)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
    finally:
        process.send_signal(signal.SIGKILL)
        end([process])
    assert line == f"not all of 2 processes are at {address} yet: waiting, for at most 300 s\n"


def test_it_is_said_once_and_only_after_a_while(monkeypatch, caplog):
    monkeypatch.setattr(joining, "_A_WHILE", 0.1)
    monkeypatch.setattr(joining, "_PATIENCE", 0.5)
    monkeypatch.setattr("jax.config.update", lambda *words: None)
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: time.sleep(0.5))
    join_processes("auto")
    told = "not all of the processes that the cluster tells of are there yet: waiting, for at most 0.5 s"
    assert caplog.messages == [told]
    monkeypatch.setattr("jax.distributed.initialize", lambda **options: None)
    join_processes("auto")
    time.sleep(0.2)
    assert caplog.messages == [told]


def test_a_first_process_that_does_not_come_is_an_error_in_words(monkeypatch):
    monkeypatch.setattr(joining, "_PATIENCE", 0.3)
    port = free_port()
    with pytest.raises(ConnectionError, match=f"the first process was not at localhost:{port} within 0.3 s"):
        join_processes(f"localhost:{port}", 1, 2)


def test_a_port_that_is_taken_is_an_error_in_words():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of this machine cannot be taken: Address already"):
            join_processes(f"localhost:{port}", 0, 2)


# What cannot be meant


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("auto", 0), "process_id = 0: goes with an address, not with distributed = 'auto'"),
        (("off", None, 2), "process_count = 2: goes with an address, not with distributed = 'off'"),
        (("host",), "distributed = 'host': must be 'off', 'auto' or host:port"),
        (("host:http", 0, 2), "must be 'off', 'auto' or host:port"),
        (("host:70000", 0, 2), "must be 'off', 'auto' or host:port"),
        (("host:1234",), "process_id = None, process_count = None: an address needs both"),
        (("host:1234", 2, 2), "process_id = 2, process_count = 2"),
    ],
)
def test_what_names_no_processes_is_refused(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        join_processes(*words)
