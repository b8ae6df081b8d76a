"""How much of a trace of `jax.profiler` a device had nothing to do."""

from collections.abc import Iterable
from pathlib import Path

import jax

OPERATIONS = ("Stream", "XLA Ops")
"""How lines of a device's operations begin, of a GPU and of a TPU."""


def read_gaps(folder: Path) -> dict[str, float] | None:
    """`gaps` of the first device in the newest trace in a folder; None if it tells of no device."""
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
        if plane.name.startswith("/device:"):
            lines = [line for line in plane.lines if line.name.startswith(OPERATIONS)]
            spans = [(e.start_ns, e.start_ns + e.duration_ns) for line in lines for e in line.events]
            return gaps(spans) if spans else None
    return None


def gaps(spans: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Of operations, which may overlap, from first to last.

    Args:
        spans: beginning and end of each, nanoseconds.

    Returns:
        ``busy``: share of the time in which one ran; ``count`` of the gaps between, ``longest_us`` and
        ``total_us``, microseconds.
    """
    first, *others = sorted(spans)
    end, found = first[1], []
    for start, stop in others:
        if start > end:
            found.append(start - end)
        end = max(end, stop)
    idle, whole = sum(found), end - first[0]
    return {
        "busy": 1.0 - idle / whole,
        "count": float(len(found)),
        "longest_us": max(found, default=0.0) / 1e3,
        "total_us": idle / 1e3,
    }
