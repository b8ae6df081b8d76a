"""What it costs that a step which is not finite changes nothing, and that checkpoints are written.

    python benchmarks/guarding.py [CONFIG.toml] [ROUNDS]

Steps are timed with and without the guard, alternately, in one process; the medians of the rounds' means,
and the quartiles of their ratio, are printed. Then saves: how long one holds the loop up, beside the bare
copy of the state to the host, and how long it takes to be on the disk.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from forestgaps_jax import Config, create_state
from forestgaps_jax.checkpoint import Checkpointer
from forestgaps_jax.data import create_data, load_sites
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import training
from forestgaps_jax.totals import Totals

STEPS = 10


def unguarded(before: TrainState, after: TrainState, finite: Any) -> TrainState:
    """What the state would be without the guard."""
    return replace(after, step=before.step + 1)


class Timed:
    """A step that is compiled on its own, with its state."""

    def __init__(self, config: Config, guard: Any):
        guarded, training.guarded = training.guarded, guard
        sites = load_sites(config)
        self.source = create_data(sites, config).train
        self.state = create_state(create_model_from_config(config), config)
        self.totals = Totals.zeros(config.thresholds, training=True)
        recipe = make_recipe(config, self.source.steps_per_epoch)
        self.step = jax.jit(training.train_step(recipe), donate_argnums=(0, 1))
        self.seconds()
        training.guarded = guarded

    def seconds(self) -> float:
        """Of one step, the mean of some."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self.state, self.totals, _ = self.step(self.state, self.totals, self.source)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / STEPS


def time_steps(config: Config, rounds: int) -> TrainState:
    """Print what the guard costs; a state to save."""
    plain, guarded = Timed(config, unguarded), Timed(config, training.guarded)
    pairs = [(plain.seconds(), guarded.seconds()) for _ in range(rounds)]
    ratios = [with_it / without for without, with_it in pairs]
    without, with_it = (statistics.median(times) for times in zip(*pairs, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"a step: {without:.4f} s without the guard, {with_it:.4f} s with it")
    print(f"ratio {middle:.3f} (quartiles {low:.3f}-{high:.3f})")
    return guarded.state


def time_saves(state: TrainState, rounds: int) -> None:
    """Print how long saves hold the loop up, and take."""
    copies, holds, wholes = [], [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            checkpointer = Checkpointer(folder)
            start = time.perf_counter()
            jax.tree.map(np.array, jax.device_get(replace(state, rng=None)))
            copied = time.perf_counter()
            checkpointer.save(replace(state, step=state.step + number), {})
            held = time.perf_counter()
            checkpointer.close()
            copies.append(copied - start)
            holds.append(held - copied)
            wholes.append(time.perf_counter() - copied)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(replace(state, rng=None))) / 1e6
    copy, hold, whole = (1000 * statistics.median(times) for times in (copies, holds, wholes))
    print(f"a save of {size:.1f} MB: copy to the host {copy:.1f} ms, held up {hold:.1f} ms")
    print(f"on the disk after {whole:.0f} ms")


if __name__ == "__main__":
    path, rounds = sys.argv[1] if len(sys.argv) > 1 else "configs/quickstart.toml", int((*sys.argv, 15)[2])
    time_saves(time_steps(Config.from_toml(path), rounds), rounds)
