r"""Time and memory of `unet_film` against the same network in PyTorch, as its best users run it.

Every contestant is a process of its own that builds, compiles and then waits. They take turns: in each round
every one makes some steps while the others sleep, so all of them see the same drift of the machine. Printed
are median and quartiles of the seconds a step, the peak memory (of the steps, and of building), and median
and quartiles over the rounds of the ratio of our time to that of the PyTorch contestants of the same
precision: below 1, we are faster.

Contestants:
    ours           forestgaps_jax as its users run it: one compiled step, its own sampler in end-to-end
    eager          PyTorch without further thought
    channels_last  the same with channels last in memory, the fused AdamW, and a malloc that keeps memory
    compile        the same with torch.compile
    max-autotune   the same with its mode of that name: CUDA graphs on a GPU, constant weights in inference
    habits         eager, and every metric of every sample goes to the host in every step (training only)
    NAME-bf16      each of them in bfloat16 (PyTorch: autocast)

What is timed:
    train          steps on one batch that is there: forward, backward, AdamW, exact counts by threshold
    end-to-end     the same with a new batch each step: our sampler inside the step, their DataLoader beside
    inference      gap probabilities of one batch, each waited for

Examples:
    python benchmarks/peer.py --json before.json
    python benchmarks/peer.py --contestants ours compile --against before.json   # after a change of ours
    python benchmarks/peer.py --what inference --precision bfloat16              # on a CPU with AMX, or a GPU
    python benchmarks/peer.py --batch 64 --tile 256 --precision bfloat16 --steps 20 \
        --contestants ours-bf16 compile-bf16 max-autotune-bf16                   # on a GPU
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer_report import against, ratios, report
from peer_turns import COMPARABLE, child_command, start, take_turns
from timing import machine, versions

PLAIN = ("ours", "eager", "channels_last", "compile", "max-autotune", "habits")
NAMES = (*PLAIN, *(f"{name}-bf16" for name in PLAIN))


def main() -> None:
    """Let the contestants take turns; print and write what came out."""
    options = parse()
    stored = json.loads(Path(options.against).read_text()) if options.against else None
    if stored:
        check_comparable(vars(options), stored["settings"])
    with tempfile.TemporaryDirectory() as folder:
        rasters = Path(folder) / "rasters.npz"
        subprocess.run(child_command(options, "rasters", rasters), check=True, stdout=subprocess.DEVNULL)
        children = start(options, rasters)
        seconds = take_turns(children, options)
        record = {
            "command": " ".join([Path(sys.executable).name, *sys.argv]),
            "settings": vars(options),
            "machine": {
                **machine(),
                "devices": sorted({child.about["device"] for child in children.values()}),
            },
            "versions": versions(),
            "contestants": {name: child.summary(seconds[name]) for name, child in children.items()},
        }
    record["ratios"] = ratios(seconds)
    if stored:
        record["against"] = against(record, stored)
    report(record)
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--what", choices=("train", "inference", "end-to-end"), default="train")
    parser.add_argument("--batch", type=int, default=4, help="tiles in a step (4)")
    parser.add_argument("--tile", type=int, default=128, help="side of a tile, px (128)")
    parser.add_argument("--features", type=int, default=32, help="channels of the first level (32)")
    parser.add_argument("--depth", type=int, default=4, help="times that the network halves the tile (4)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (9)")
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn (3; more on a GPU)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="whom to compare where --contestants does not say it: the plain ones, or those in bfloat16",
    )
    parser.add_argument("--contestants", nargs="+", choices=NAMES, metavar="NAME", help="see above")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    parser.add_argument("--against", metavar="FILE", help="a --json of before: how much faster are we now?")
    options = parser.parse_args()
    options.contestants = options.contestants or default_contestants(options.what, options.precision)
    if options.what == "inference" and any("habits" in name for name in options.contestants):
        parser.error("habits is of training only")
    return options


def default_contestants(what: str, precision: str) -> list[str]:
    plain = [name for name in PLAIN if name != "habits" or what != "inference"]
    if precision == "float32":
        return plain
    return [f"{name}-bf16" for name in plain if name not in ("eager", "habits")]


def check_comparable(now: dict[str, Any], then: dict[str, Any]) -> None:
    """Refuse a stored run of another task."""
    other = [f"--{name} {then[name]}" for name in COMPARABLE if then[name] != now[name]]
    if other:
        sys.exit(f"the stored run is of another task: it had {', '.join(other)}")


if __name__ == "__main__":
    main()
