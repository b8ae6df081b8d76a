"""Two processes of one training, on this machine."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.survival import TRAIN, environment

_FLAGS = "--xla_force_host_platform_device_count={} --xla_cpu_enable_concurrency_optimized_scheduler=false"
"""CPU devices of one process may otherwise start their collectives in different orders, and wait for ever."""


def free_port() -> int:
    """A port that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(words: list[str], folder: Path, devices: int = 2) -> subprocess.Popen[str]:
    """Start Python in a process of so many CPU devices."""
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": _FLAGS.format(devices)}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment(**settings, PYTHONPATH=str(Path(__file__).parents[1])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_trainings(folder: Path) -> list[subprocess.Popen[str]]:
    """Start ``forestgaps-jax train run.toml`` as two processes that find each other."""
    together = ["--distributed", f"localhost:{free_port()}", "--process-count", "2"]
    return [start([*TRAIN, *together, "--process-id", str(i)], folder) for i in range(2)]


def end(processes: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    try:
        told = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, told, strict=True)]
