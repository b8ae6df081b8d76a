"""What it costs that a training step cuts and augments its own batch: against the same step on a fixed batch.

    python benchmarks/sampling.py [--rounds 7] [--unet-film] [--json FILE]

The augmentation is that of configs/general.toml; so is the network, or it is unet_film as it comes, with 4
tiles of one threshold each. Virtual forests, and one of them as a canopy that is drawn by weight. Both steps
take turns; medians and quartiles of a round, and of the ratio.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import parser_of, quartiles, take_turns, write_record

from forestgaps_jax import Config, create_state
from forestgaps_jax.data import create_data, put_on_terrain, virtual_forest
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import make_train_step
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import Grid

STEPS = 5


def main() -> None:
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("--unet-film", action="store_true", help="instead of the network of general.toml")
    options = parser.parse_args()
    config = Config.from_toml("configs/general.toml", val_fraction=0.0, test_fraction=0.0)
    if options.unet_film:
        film = {"model_name": "unet_film", "features": 32, "depth": 4}
        config = replace(config, **film, thresholds_per_tile=1, batch_size=4)
    forests = [virtual_forest(seed, (256, 256), slope=5.0 * seed) for seed in range(8)]
    canopy = replace(put_on_terrain(forests[0], 1, 20.0), name="canopy", grid=Grid(1.0))
    sampler: Any = create_data([canopy, *forests], config).train
    step = make_train_step(make_recipe(config, sampler.steps_per_epoch))
    begin = create_state(create_model_from_config(config), config)
    sources = {"sampler": sampler, "fixed batch": jax.jit(sampler.sample)(0)}
    ways = {name: partial(run, step, begin, config, source) for name, source in sources.items()}
    seconds = take_turns(ways, options.rounds, warm_up=1)  # the first compiles
    for name, times in seconds.items():
        print(f"{name:12s} {told(times)} s a step")
    print("ratio        " + told(np.divide(*seconds.values())))
    write_record(options.json, {"seconds": seconds, "network": config.model_name})


def run(step: Any, state: Any, config: Config, source: Any) -> float:
    """Seconds of a step, the mean of some."""
    state, totals = jax.tree.map(jnp.copy, state), Totals.zeros(config.thresholds)
    begin = time.perf_counter()
    for _ in range(STEPS):
        state, totals, logs = step(state, totals, source)
    jax.block_until_ready(logs)
    return (time.perf_counter() - begin) / STEPS


def told(values: Any) -> str:
    low, middle, high = quartiles(values)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
