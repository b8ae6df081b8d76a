"""What the benchmarks share: turns, quartiles, and where they were measured. Imports no jax by itself."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")


def parser_of(documentation: str | None, rounds: int) -> ArgumentParser:
    """A parser of ``--rounds`` and ``--json``, whose help is the documentation of the script."""
    parser = ArgumentParser(
        description=documentation, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each ({rounds})")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    return parser


def quartiles(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """The first quartile, the median, the third quartile."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return low, median, high


def clocked(call: Callable[[], Any]) -> Callable[[], float]:
    """A call that returns the seconds that it took."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return timed


def take_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 0
) -> dict[str, list[float]]:
    """What each way returns, round by round; every other round goes the other way round.

    Args:
        ways: each returns its seconds.
        rounds: turns of each that count.
        warm_up: rounds before them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            passed = ways[name]()
            if number >= warm_up:
                seconds[name].append(passed)
    return seconds


def machine() -> dict[str, Any]:
    """Where this runs: processor, its vector extensions, cores, memory in GB, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    return {
        "cpu": cpu.get("model name", platform.processor()).strip(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "flags": [flag for flag in cpu.get("flags", "").split() if flag.startswith(("avx512", "amx"))],
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Of Python, of the packages that matter (None: not there), and of this library."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    packages = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "forestgaps_jax": commit.stdout.strip()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def where() -> dict[str, Any]:
    """All that makes a measurement repeatable: command, machine, versions."""
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    return {"command": command, "machine": machine(), "versions": versions()}


def write_record(file: str | None, record: Mapping[str, Any]) -> None:
    """Write numbers as JSON, with `where` they are from; nothing without a file."""
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps({**where(), **record}, indent=1) + "\n", encoding="utf-8")


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of words, the first column to the left and the numbers to the right."""
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    sides = [str.ljust, *[str.rjust] * (len(titles) - 1)]

    def line(cells: Sequence[str]) -> str:
        padded = (side(cell, width) for side, cell, width in zip(sides, cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (width - 1)}{'-' if column == 0 else ':'}" for column, width in enumerate(widths)]
    return "\n".join([line(titles), line(rule), *map(line, rows)])
