"""Faults injected into a real training, again and again; does it end as if nothing had been?

    python benchmarks/soak.py [ROUNDS] [SEED]

A small training (moving average, learnt loss weights, plateau, stochastic depth, early stopping with the
best weights kept; a checkpoint after every step) is started by the command line in a process of its own,
disturbed, and started again by the same command, until it has been disturbed ROUNDS times (50) and is at
its end; whenever a run comes to its end before, it is compared and a new one begins. Faults: kill -9 at a
random moment, which often is in the midst of a save; SIGTERM and Ctrl-C; and on the disk, between two
starts, damage to the newest checkpoint. The end is compared with that of a run that nothing has disturbed:
parameters and all other state, history, best checkpoint, metrics and test scores, bit for bit.
"""

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.survival import DAMAGES, Runner, damage

KINDS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]


def disturb(runner: Runner, rng: random.Random, found: Counter[str]) -> bool:
    """One disturbance; whether the training came to its end for all that."""
    kind = rng.choice(KINDS)
    steps = runner.steps()
    code = runner.interrupt(kind, rng.uniform(0, 1.5), rng.choice([0, max(steps, default=0) + 1]))
    if code == 0:
        found["too late: the training was at its end"] += 1
        return True
    wanted = -signal.SIGKILL if kind == signal.SIGKILL else 128 + kind
    if code != wanted:
        raise SystemExit(f"{kind.name}: exit code {code} and not {wanted}\n{runner.output}")
    found[kind.name] += 1
    folder = runner.run_folder / "checkpoints"
    if folder.is_dir() and any("tmp" in path.name or ".new" in path.name for path in folder.iterdir()):
        found["... in the midst of a save"] += 1
    if len(runner.steps()) > 1 and rng.random() < 0.3:
        how = rng.choice(DAMAGES)
        damage(folder / str(runner.steps()[-1]), how, rng)
        found[f"newest checkpoint: {how}"] += 1
    return False


def compare(runner: Runner, expected: dict) -> None:
    """Refuse any difference."""
    result = runner.result()
    if wrong := [name for name in expected if result[name] != expected[name]]:
        raise SystemExit(f"{runner.folder}: {', '.join(wrong)} differ from the undisturbed run")


def main(rounds: int = 50, seed: int = 0) -> None:
    """Disturb, compare, and print what was survived."""
    rng, found, start = random.Random(seed), Counter[str](), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        whole = Runner(Path(place) / "whole")
        if whole.finish():
            raise SystemExit(whole.output)
        expected, ended = whole.result(), 0
        runner, disturbed = Runner(Path(place) / "0"), 0
        while disturbed < rounds:
            if disturb(runner, rng, found):
                compare(runner, expected)
                ended += 1
                runner = Runner(Path(place) / str(ended))
            else:
                disturbed += 1
                print(f"\r{disturbed} of {rounds}", end="", file=sys.stderr)
        if runner.finish():
            raise SystemExit(runner.output)
        compare(runner, expected)
    print(f"\n{rounds} disturbances, {ended + 1} trainings, {time.perf_counter() - start:.0f} s:")
    for name, count in found.most_common():
        print(f"{count:5}  {name}")
    print("all ended bit for bit as the undisturbed one")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
