"""Many small trainings by `train_many`, in turns and in one program, against `train` for each in a row.

    python benchmarks/many.py [--members 8] [--rounds 3] [--json FILE]

Networks of two sizes, each trained for one epoch by all three ways in turn; medians and quartiles of the
seconds, compiled before. The members differ in seed and learning rate.
"""

from dataclasses import replace
from typing import Any

import jax
from timing import clocked, parser_of, quartiles, take_turns, write_record

from forestgaps_jax import Config, Data, create_state, train, train_many
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.models import create_model_from_config

SIZES: dict[str, dict[str, Any]] = {
    "4 features, 2 x 16 px": {"features": 4, "depth": 1, "batch_size": 2, "tile_size": 16},
    "8 features, 4 x 32 px": {"features": 8, "depth": 2, "batch_size": 4, "tile_size": 32},
}


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--members", type=int, default=8, help="networks to train (8)")
    options = parser.parse_args()
    results = {name: compare(settings, options.members, options.rounds) for name, settings in SIZES.items()}
    for name, ways in results.items():
        told = ", ".join(
            f"{way} {low:.2f}-{middle:.2f}-{high:.2f} s" for way, (low, middle, high) in ways.items()
        )
        print(f"{name}, {options.members} members: {told}")
    device = jax.devices()[0].device_kind
    write_record(options.json, {"quartiles": results, "members": options.members, "device": device})


def compare(settings: dict[str, Any], members: int, rounds: int) -> dict[str, tuple[float, float, float]]:
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
    timed = {way: clocked(run) for way, run in ways.items()}
    seconds = take_turns(timed, rounds, warm_up=1)  # the first compiles
    return {way: quartiles(values) for way, values in seconds.items()}


if __name__ == "__main__":
    main()
