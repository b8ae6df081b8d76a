"""Two processes of one training, on this machine."""

import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.conftest import flags_of_devices
from tests.survival import TRAIN, environment

_IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
"""CPU devices of one process may otherwise start their collectives in different orders, and wait for ever."""

GLOO = re.compile(
    r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d|\s"
)
"""What Gloo prints in every process, its threads into each other's lines."""

_CLUSTERS = ("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "MEGASCALE_", "JAX_COORDINATOR_", "JAX_LOCAL_DEVICE_")
"""How variables begin that tell jax of other processes."""


def free_port() -> int:
    """A port that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(words: list[str], folder: Path, devices: int = 2, **variables: str) -> subprocess.Popen[str]:
    """Start Python in a process of so many CPU devices; of a cluster it sees what is in these variables."""
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags_of_devices(devices)} {_IN_ORDER}"}
    known = environment(**settings, PYTHONPATH=str(Path(__file__).parents[1]))
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={name: value for name, value in known.items() if not name.startswith(_CLUSTERS)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_trainings(folder: Path) -> list[subprocess.Popen[str]]:
    """Start ``forestgaps-jax train run.toml`` as two processes that find each other."""
    together = ["--distributed", f"localhost:{free_port()}", "--process-count", "2"]
    return [start([*TRAIN, *together, "--process-id", str(i)], folder) for i in range(2)]


def start_tasks(folder: Path) -> list[subprocess.Popen[str]]:
    """Start ``forestgaps-jax train run.toml`` as SLURM would start two tasks on this machine."""
    job = {"SLURM_JOB_ID": str(_free_job()), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
    job |= {"SLURM_NTASKS": "2"}
    words = [*TRAIN, "--distributed", "auto"]
    return [start(words, folder, 2, **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]


def _free_job() -> int:
    """Number of a job whose port, which jax takes from the number, is free: one of the last 4096."""
    for job in range(4096):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", 65536 - 4096 + job))
            return job
    raise OSError("no port is free")


def end(processes: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    try:
        told = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]
