"""Many small trainings by `train_many`, in turns and in one program, against `train` for each in a row.

    python benchmarks/many.py [--members 8] [--rounds 3] [--json FILE]

Networks of two sizes, each trained for one epoch by all three ways in turn; medians and quartiles of the
seconds, compiled before. The members differ in seed and learning rate.
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from forestgaps_jax import Config, Data, create_state, train, train_many
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.models import create_model_from_config

SIZES: dict[str, dict[str, Any]] = {
    "4 features, 2 x 16 px": {"features": 4, "depth": 1, "batch_size": 2, "tile_size": 16},
    "8 features, 4 x 32 px": {"features": 8, "depth": 2, "batch_size": 4, "tile_size": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    results = {name: compare(settings, options.members, options.rounds) for name, settings in SIZES.items()}
    for name, ways in results.items():
        told = ", ".join(
            f"{way} {low:.2f}-{middle:.2f}-{high:.2f} s" for way, (low, middle, high) in ways.items()
        )
        print(f"{name}, {options.members} members: {told}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {"quartiles": results, "members": options.members, "device": jax.devices()[0].device_kind},
                file,
            )


def compare(settings: dict[str, Any], members: int, rounds: int) -> dict[str, list[float]]:
    """Quartiles of the seconds of an epoch, each way."""
    config = Config(
        model_name="unet_film", opening_windows=(5, 9), epochs=1, split_buffer=0.0, val_fraction=0.0,
        test_fraction=0.0, use_progress_bar=False, **settings,
    )  # fmt: skip
    side = 4 * config.tile_size
    data = Data(train=create_data([virtual_forest(0, (side, side // 2))], config).train)
    configs = [replace(config, seed=n, learning_rate=1e-3 * (1 + n)) for n in range(members)]
    states = [create_state(create_model_from_config(c), c) for c in configs]
    ways: dict[str, Any] = {
        "in a row": lambda: [train(s, c, data) for s, c in zip(states, configs, strict=True)],
        "in turns": lambda: train_many(states, configs, data, vectorized=False),
        "one program": lambda: train_many(states, configs, data, vectorized=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if number:  # the first compiles
                seconds[way].append(time.perf_counter() - start)
    return {way: np.percentile(values, (25, 50, 75)).tolist() for way, values in seconds.items()}


if __name__ == "__main__":
    main()
