"""The contestants of `peer.py`: processes that build one after the other, and then take turns."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timing import quartiles

CONTESTANT = Path(__file__).with_name("peer_contestant.py")
COMPARABLE = ("what", "batch", "tile", "features", "depth")
"""Options that say what is timed."""
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""Makes glibc keep what is freed, as the allocators do that PyTorch's guide to CPUs recommends: else the
kernel clears every large tensor anew."""


def child_command(options: argparse.Namespace, name: str, rasters: Path) -> list[str]:
    sizes = [f"--{key}={getattr(options, key)}" for key in COMPARABLE]
    return [sys.executable, str(CONTESTANT), name, str(rasters), *sizes]


class Child:
    """A contestant in a process of its own.

    Attributes:
        about: what it said of itself once it was ready.
        others: cores that were busy with something else, in each turn.
    """

    def __init__(self, name: str, command: list[str], errors: Path):
        self.name, self.errors, self.others = name, errors, []
        # JAX would take most of a GPU's memory at once, which here others need too.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
            env=os.environ
            | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            | (KEEP_MEMORY if tuned(name) else {}),
        )
        self.about = self._answer()

    def seconds(self, steps: int) -> float:
        """Of one step, the mean of some."""
        busy = busy_seconds()
        turn = self._ask(str(steps))
        others = busy_seconds() - busy - turn["cpu_seconds"]
        self.others.append(max(others, 0.0) / turn["seconds"])
        return turn["seconds"] / steps

    def summary(self, seconds: list[float]) -> dict[str, Any]:
        """All that is known of it; it ends."""
        low, median, high = quartiles(seconds)
        about = self.about | self._ask("end") | {"seconds": seconds, "other_cores": self.others}
        self.process.wait()
        return about | {"median": median, "low": low, "high": high}

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("\n".join(self.errors.read_text().strip().splitlines()[-15:]))
        return json.loads(line)


def start(options: argparse.Namespace, rasters: Path) -> dict[str, Child]:
    """Build the contestants one after the other; those that cannot run here are told and left out."""
    children = {}
    for name in options.contestants:
        command = child_command(options, name, rasters)
        try:
            children[name] = Child(name, command, rasters.with_name(f"{name}.log"))
        except RuntimeError as error:
            print(f"{name} cannot run here:\n{error}", file=sys.stderr)
            continue
        print(f"{name} is ready after {children[name].about['build_seconds']:.0f} s", file=sys.stderr)
    if not children:
        sys.exit("no contestant can run here")
    return children


def take_turns(children: dict[str, Child], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step, round by round; every other round goes the other way round."""
    seconds: dict[str, list[float]] = {name: [] for name in children}
    for number in range(options.rounds):
        for child in list(children.values())[:: 1 if number % 2 == 0 else -1]:
            time.sleep(0.2)  # the threads of the one before are still looking for work
            seconds[child.name].append(child.seconds(options.steps))
    return seconds


def busy_seconds() -> float:
    """What all processors together have worked since the machine started; 0 where that is not told."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def tuned(name: str) -> bool:
    """Whether this is PyTorch of someone who tunes it."""
    return not name.startswith(("ours", "eager", "habits"))
