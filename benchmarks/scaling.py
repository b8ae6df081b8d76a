"""What training on many chips costs, computed: the tables of docs/scaling.md.

    python benchmarks/scaling.py

Nothing is trained and nothing compiled: operations are those of the lowered step, bytes those that the
backward pass keeps of the forward pass. Times follow from the chips' published figures and the assumptions
below.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from forestgaps_jax import Batch, Config, TrainState, create_state
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import make_train_step
from forestgaps_jax.totals import Totals

MODELS = ("unet_film", "unet_distribution", "unet_ground")
BATCH = 8
"""Tiles a chip, of the default 128 px."""
REACHED = 0.25
"""Assumed share of the peak: layers of 32 channels fill a quarter of a matrix unit that is 128 wide."""
OTHER_SUMS = 6
"""All-reduces of a step beside two a normalisation: loss, gradients (merged), counts, pixels."""


@dataclass(frozen=True)
class Chip:
    """Published figures a chip, and an assumed latency (s) of one all-reduce by number of chips."""

    name: str
    operations: float
    memory: float
    network: dict[int, float]
    latency: dict[int, float]


CHIPS = (
    Chip("TPU v5e", 197e12, 819e9, dict.fromkeys((8, 64, 256), 200e9), {8: 8e-6, 64: 28e-6, 256: 32e-6}),
    Chip("H200", 989e12, 4.8e12, {8: 450e9, 64: 50e9, 256: 50e9}, {8: 20e-6, 64: 40e-6, 256: 60e-6}),
)


@dataclass(frozen=True)
class Work:
    """Of one step of one chip."""

    parameters: int
    state_bytes: int
    operations: float
    kept: int
    sums: int
    input_bytes: int


def bytes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def work(name: str) -> Work:
    config = replace(Config(), model_name=name, precision="bfloat16", batch_size=BATCH)
    state = create_state(create_model_from_config(config), config)
    images = jnp.zeros((BATCH, config.tile_size, config.tile_size, 1))
    batch = Batch(images, images, jnp.ones(BATCH), images == 0)
    totals = Totals.zeros(config.thresholds, training=True)
    lowered = make_train_step(make_recipe(config, 100)).lower(state, totals, batch)  # type: ignore[attr-defined]
    return Work(
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        bytes_of((state.params, state.opt_state, state.model_state)),
        lowered.cost_analysis()["flops"],
        kept_bytes(state, batch),
        # A running mean and a variance of each normalisation.
        len(jax.tree.leaves(state.model_state)) + OTHER_SUMS,
        bytes_of(batch) // BATCH,
    )


def kept_bytes(state: TrainState, batch: Batch) -> int:
    def backward(params):
        def forward(params):
            return state.apply(params, state.model_state, batch.dsm, batch.threshold, train=True)[0]

        return jax.vjp(forward, params)[1]

    return bytes_of(jax.eval_shape(backward, state.params))


def step_seconds(work: Work, chip: Chip) -> float:
    """What one chip needs alone: arithmetic, or writing and reading what is kept, whichever is longer."""
    return max(work.operations / (chip.operations * REACHED), 2 * work.kept / chip.memory)


def sum_seconds(work: Work, chip: Chip, chips: int) -> tuple[float, float]:
    """All-reduces of a step, by bandwidth (a ring, gradients in float32) and by latency."""
    moved = 2 * (chips - 1) / chips * 4 * work.parameters
    return moved / chip.network[chips], work.sums * chip.latency[chips]


def report(works: dict[str, Work]) -> None:
    print("| model | parameters | state, MB | GFLOP a step | kept, MB | all-reduces a step "
          "| stream, kB a tile |\n|" + "---|" * 7)  # fmt: skip
    for name, w in works.items():
        print(
            f"| {name} | {w.parameters:,} | {w.state_bytes / 1e6:.1f} | {w.operations / 1e9:.0f} "
            f"| {w.kept / 1e6:.0f} | {w.sums} | {w.input_bytes / 1e3:.0f} |"
        )
    print("\n| model | chip | chips | batch | step alone, ms | all-reduce by bandwidth, ms | by latency, ms "
          "| efficiency | stream, GB/s a host |\n|" + "---|" * 9)  # fmt: skip
    for name, w in works.items():
        for chip in CHIPS:
            for chips in chip.network:
                alone, (wide, far) = step_seconds(w, chip), sum_seconds(w, chip, chips)
                whole = alone + wide + far
                stream = 8 * BATCH * w.input_bytes / whole
                print(
                    f"| {name} | {chip.name} | {chips} | {BATCH * chips} | {1e3 * alone:.2f} "
                    f"| {1e3 * wide:.2f} | {1e3 * far:.2f} | {alone / whole:.0%} | {stream / 1e9:.2f} |"
                )


if __name__ == "__main__":
    report({name: work(name) for name in MODELS})
