"""Whether several training steps in one call of a compiled function are faster than one each.

    python benchmarks/dispatch.py [--rounds 9] [--steps 8] [--json FILE]

Steps are called one by one, as `train` does, or as many at once: in a loop that XLA runs (`jax.lax.scan`), or
written out one after the other. They take turns in one process, on networks from the smallest on; quartiles
of the ratio of rounds to those called one by one. On-device sampler, float32.
"""

from dataclasses import replace
from typing import Any

import jax
from timing import clocked, markdown_table, parser_of, quartiles, take_turns, write_record

from forestgaps_jax import Config, create_state
from forestgaps_jax.compilation import compiler_options
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import train_step
from forestgaps_jax.totals import Totals

SMALLEST = Config(
    features=2, depth=1, tile_size=16, batch_size=1, opening_windows=(5,), val_fraction=0.0, test_fraction=0.0
)
SIZES = {
    "2 features, 1 x 16 px": SMALLEST,
    "8 features, 4 x 32 px": replace(SMALLEST, features=8, depth=2, tile_size=32, batch_size=4),
    "16 features, 8 x 64 px": replace(SMALLEST, features=16, depth=2, tile_size=64, batch_size=8),
}
SITE = virtual_forest(0, (256, 256))


class Training:
    """A state that goes on by ``steps`` steps a call, dispatched in one way."""

    def __init__(self, config: Config, way: str, steps: int):
        self.source: Any = create_data([SITE], config).train
        self.state = create_state(create_model_from_config(config), config)
        self.totals = Totals.zeros(config.thresholds, training=True)
        self.calls = steps if way == "one by one" else 1
        step = train_step(make_recipe(config, self.source.steps_per_epoch))

        def scanned(state: Any, totals: Any, source: Any) -> tuple[Any, Any, Any]:
            def body(carry: Any, _: None) -> tuple[Any, Any]:
                state, totals, logs = step(*carry, source)
                return (state, totals), logs

            unroll = steps if way == "unrolled" else 1
            (state, totals), logs = jax.lax.scan(body, (state, totals), None, steps, unroll=unroll)
            return state, totals, logs

        chosen = step if way == "one by one" else scanned
        self.step = jax.jit(chosen, donate_argnums=(0, 1), compiler_options=compiler_options())

    def go_on(self) -> None:
        """Make the steps, and wait."""
        for _ in range(self.calls):
            self.state, self.totals, _ = self.step(self.state, self.totals, self.source)
        jax.block_until_ready(self.state)


def main() -> None:
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("--steps", type=int, default=8, help="steps at once (8)")
    options = parser.parse_args()
    rows, record = [], {}
    for size, config in SIZES.items():
        ways = {
            way: clocked(Training(config, way, options.steps).go_on)
            for way in ("one by one", "scan", "unrolled")
        }
        seconds = take_turns(ways, options.rounds, warm_up=2)
        milliseconds = 1e3 * quartiles(seconds["one by one"])[1] / options.steps
        found = {
            way: quartiles([at_once / one for at_once, one in zip(times, seconds["one by one"], strict=True)])
            for way, times in seconds.items()
        }
        record[size] = {"ms": milliseconds, "ratios": found}
        told = [f"{found[way][1]:.2f} ({found[way][0]:.2f} to {found[way][2]:.2f})" for way in list(ways)[1:]]
        rows.append([size, f"{milliseconds:.2f}", *told])
    print(markdown_table(["network", "ms a step, one by one", "scan", "unrolled"], rows))
    write_record(options.json, {"sizes": record, "steps": options.steps, "rounds": options.rounds})


if __name__ == "__main__":
    main()
