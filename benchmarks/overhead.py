"""What a training step pays beside the network: counts and norms, thresholds, and the loop on the host.

    python benchmarks/overhead.py [--rounds 9] [--json FILE]

The steps of each comparison take turns in one process; medians and quartiles of the ratios of rounds are
printed. For the network and tiles of configs/general.toml, in float32, on one batch that is there:

- metrics: exact counts, the epoch's loss and the gradient norm, against a step that adds nothing up;
- thresholds: 16 listed heights against 4;
- loop: microseconds a step of `train` beyond those of its compiled step called in a row, with a model of two
  weights, where the device has next to nothing to do.
"""

import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from timing import parser_of, quartiles, write_record

from forestgaps_jax import Config, Data, create_state, train
from forestgaps_jax.compilation import compiler_options
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.state import init_state
from forestgaps_jax.steps import make_train_step, train_step
from forestgaps_jax.totals import Totals

STEPS = 5
Quartiles = tuple[float, float, float]
HEIGHTS = tuple(float(height) for height in range(2, 34, 2))


def main() -> None:
    options = parser_of(__doc__, rounds=9).parse_args()
    general = Config.from_toml("configs/general.toml", val_fraction=0.0, test_fraction=0.0)
    results = {
        "metrics": ratio(Step(general), Step(general, metrics=False), options.rounds),
        "thresholds": ratio(Step(replace(general, thresholds=HEIGHTS)), Step(general), options.rounds),
        "loop_us": loop(options.rounds),
    }
    for name, (low, middle, high) in results.items():
        print(f"{name:12s} {middle:.3f} ({low:.3f} to {high:.3f})")
    device = jax.devices()[0].device_kind
    write_record(options.json, {"quartiles": results, "rounds": options.rounds, "device": device})


class Step:
    """A compiled step with its state, on one batch."""

    def __init__(self, config: Config, metrics: bool = True):
        sampler: Any = create_data([virtual_forest(0, (256, 256))], config).train
        # The same batch for every list of heights: those of general.toml are drawn from a range.
        self.batch = jax.jit(sampler.sample)(0)
        self.state = create_state(create_model_from_config(config), config)
        self.totals = Totals.zeros(config.thresholds, training=True)
        step = train_step(make_recipe(config, 100))
        nothing = lambda totals, *_: totals  # noqa: E731
        with patch.object(Totals, "add", Totals.add if metrics else nothing):
            self.step = jax.jit(step, donate_argnums=(0, 1), compiler_options=compiler_options())
            self.seconds()

    def seconds(self) -> float:
        """Of some steps."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self.state, self.totals, _ = self.step(self.state, self.totals, self.batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - start


def ratio(dear: Step, cheap: Step, rounds: int) -> Quartiles:
    """Quartiles of the ratio of their times."""
    return quartiles([dear.seconds() / cheap.seconds() for _ in range(rounds)])


def loop(rounds: int) -> Quartiles:
    """Quartiles of the microseconds a step that `train` takes beyond its compiled step."""
    config = Config(
        epochs=1, batch_size=1, tile_size=16, augment=False, split_buffer=0.0, val_fraction=0.0,
        test_fraction=0.0, use_progress_bar=False,
    )  # fmt: skip
    sampler: Any = create_data([virtual_forest(0, (512, 512))], config).train
    data, steps = Data(train=sampler), sampler.steps_per_epoch
    state = init_state(two_weights, {"w": jnp.asarray(0.1), "b": jnp.asarray(0.2)}, config)
    step = make_train_step(make_recipe(config, steps))

    def in_a_row() -> float:
        now, totals = jax.tree.map(jnp.copy, state), Totals.zeros(config.thresholds, training=True)
        start = time.perf_counter()
        for _ in range(steps):
            now, totals, _ = step(now, totals, sampler)
        jax.block_until_ready(now)
        return time.perf_counter() - start

    def trained() -> float:
        start = time.perf_counter()
        train(state, config, data)
        return time.perf_counter() - start

    in_a_row(), trained()
    return quartiles([1e6 * (trained() - in_a_row()) / steps for _ in range(rounds)])


def two_weights(
    params: Any, model_state: Any, dsm: Any, threshold: Any, rngs: Any = None, train: bool = False
) -> Any:
    """A model with next to nothing to compute."""
    return params["w"] * dsm + params["b"] * threshold[:, None, None, None], model_state


if __name__ == "__main__":
    main()
