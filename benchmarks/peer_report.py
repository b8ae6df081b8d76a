"""What came out of `peer.py`: ratios to PyTorch and to a stored run, and the tables."""

import statistics
import sys
from typing import Any

from timing import quartiles

DISTURBED = 0.2
"""Cores that others keep busy, from which times are not to be trusted (workers that load data are others)."""


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Our time over that of each PyTorch contestant of the same precision, and which is the fastest."""
    found = {}
    for name, times in seconds.items():
        rivals = [other for other in seconds if rival(name, other)]
        if not rivals:
            continue
        over = {}
        for other in rivals:
            low, median, high = quartiles([a / b for a, b in zip(times, seconds[other], strict=True)])
            over[other] = {"median": median, "low": low, "high": high}
        fastest = min(rivals, key=lambda other: statistics.median(seconds[other]))
        found[name] = {"fastest": fastest, **over[fastest], "over": over}
    return found


def against(record: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Our time over that of a stored run, each as a multiple of what the same rival took in that run."""
    if record["machine"]["cpu"] != stored["machine"]["cpu"]:
        print(f"the stored run is of another processor: {stored['machine']['cpu']}", file=sys.stderr)
    found = {}
    for name, now in record["ratios"].items():
        then = stored["ratios"].get(name, {"over": {}})
        shared = [other for other in now["over"] if other in then["over"]]
        if not shared:
            continue
        by = {other: now["over"][other]["median"] / then["over"][other]["median"] for other in shared}
        plain = record["contestants"][name]["median"] / stored["contestants"][name]["median"]
        found[name] = {"median": statistics.median(by.values()), "by_rival": by, "not_normalised": plain}
    return found


def report(record: dict[str, Any]) -> None:
    """Print the tables."""
    settings, where = record["settings"], record["machine"]
    print(
        f"{settings['what']}, {settings['batch']} x {settings['tile']} px, {settings['features']} features, "
        f"depth {settings['depth']}, on {where['cores']} cores of {where['cpu']}"
        f"{''.join(f', {device}' for device in where['devices'] if device != 'cpu')}"
    )
    columns = (("ms a step", 10), ("quartiles", 17), ("peak MB", 10), ("to build", 9), ("s to build", 11))
    print(" " * 20, *(f"{title:>{width}s}" for title, width in columns))
    for name, found in record["contestants"].items():
        low, median, high = (1000 * found[key] for key in ("low", "median", "high"))
        print(
            f"{name:20s} {median:10.1f} {low:8.1f} {high:8.1f} {found['peak_mb']:10.0f} "
            f"{found['build_peak_mb']:9.0f} {found['build_seconds']:11.1f}"
        )
    others = statistics.mean(
        share for found in record["contestants"].values() for share in found["other_cores"]
    )
    if others > DISTURBED:
        print(f"{others:.1f} cores were busy with something else: measure again when the machine is quiet")
    for name, found in record["ratios"].items():
        for other, ratio in found["over"].items():
            mark = "  <- the fastest" if other == found["fastest"] else ""
            print(
                f"{name} / {other}: {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}){mark}"
            )
    for name, found in record.get("against", {}).items():
        by = ", ".join(f"by {other} {ratio:.3f}" for other, ratio in found["by_rival"].items())
        print(
            f"{name}: {found['median']:.3f} of the stored run's time, the machine's drift taken off ({by}); "
            f"{found['not_normalised']:.3f} with it"
        )


def rival(name: str, other: str) -> bool:
    """Whether these are ours and PyTorch's, of one precision."""
    ours, theirs = name.startswith("ours"), not other.startswith("ours")
    return ours and theirs and name.endswith("-bf16") == other.endswith("-bf16")
