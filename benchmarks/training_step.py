"""One compiled training step that benchmarks can run, weigh and look into."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax import Batch, Config, create_state
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import as_arrays, make_train_step
from forestgaps_jax.totals import Totals


def random_batch(config: Config) -> Batch:
    """Tiles of random heights, with all that the sampler gives, labelled at the thresholds in turn."""
    random = np.random.default_rng(0)
    shape = config.batch_size, config.tile_size, config.tile_size, 1
    chm = random.uniform(0.0, 30.0, shape).astype(np.float32)
    threshold = np.resize(np.array(config.thresholds, np.float32), config.batch_size)
    mask = (chm < threshold[:, None, None, None]).astype(np.float32)
    tiles = Batch(
        300.0 + chm,
        mask,
        threshold,
        valid=np.ones(shape, bool),
        chm=chm,
        resolution=np.ones(config.batch_size, np.float32),
    )
    return jax.tree.map(jnp.asarray, tiles)


class TrainingStep:
    """The training step of a configuration, on one batch that is there, with forward, backward and update.

    Attributes:
        lowered: the step before the compiler.
        compiled: what the compiler made of it.
        compile_seconds: that it took.
    """

    def __init__(self, config: Config):
        recipe = make_recipe(config, 100)
        self.config, self.batch = config, random_batch(config)
        self.state: Any = create_state(create_model_from_config(config), config)
        self.totals = Totals.zeros(config.thresholds, training=True)
        self._numbers = as_arrays(recipe.numbers)
        step: Any = make_train_step(recipe)
        start = time.perf_counter()
        self.lowered = step.lower(self.state, self.totals, self.batch)
        self.compiled = self.lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def dispatch(self) -> None:
        """Hand one step to the device, and do not wait."""
        self.state, self.totals, _ = self.compiled(self._numbers, self.state, self.totals, self.batch)

    def wait(self) -> None:
        """Until all that was dispatched is done."""
        jax.block_until_ready((self.state, self.totals))

    def seconds(self, steps: int) -> float:
        """Of one step, the mean of some in a row."""
        start = time.perf_counter()
        for _ in range(steps):
            self.dispatch()
        self.wait()
        return (time.perf_counter() - start) / steps

    def planned_bytes(self) -> int | None:
        """Memory of the step that XLA plans: arguments, results and temporaries; None if it does not say."""
        plan = self.compiled.memory_analysis()
        if plan is None:
            return None
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return held + plan.temp_size_in_bytes

    def cost(self, what: str) -> float | None:
        """Of one step by the compiler's ``"flops"`` or ``"bytes accessed"``; None if it does not say."""
        try:
            found = self.compiled.cost_analysis()
        except jax.errors.JaxRuntimeError:
            return None
        found = found[0] if isinstance(found, list) else found or {}
        value = found.get(what, -1.0)  # XLA says -1 where it does not know
        return value if value > 0 else None
