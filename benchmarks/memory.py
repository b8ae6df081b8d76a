"""Memory of one training step, by precision and rematerialisation.

    python benchmarks/memory.py [BATCH_SIZE] [TILE_SIZE]

"kept" is what automatic differentiation keeps of the forward pass for the backward pass, on any device.
"planned" is what XLA plans for the compiled step on this device, beside its arguments (``memory_analysis``).
Nothing is run, so both are exact and have no spread.
"""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp

from forestgaps_jax import Batch, Config, TrainState, create_state
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import make_train_step
from forestgaps_jax.totals import Totals


def kept_bytes(state: TrainState, batch: Batch) -> int:
    def backward(params):
        def forward(params):
            return state.apply(params, state.model_state, batch.dsm, batch.threshold, train=True)[0]

        return jax.vjp(forward, params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, state.params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def planned_bytes(config: Config, state: TrainState, batch: Batch) -> int:
    step = make_train_step(make_recipe(config, 100))
    lowered = step.lower(state, Totals.zeros(config.thresholds), batch)  # type: ignore[attr-defined]
    return lowered.compile().memory_analysis().temp_size_in_bytes


def report(config: Config, changes: dict) -> str:
    config = replace(config, **changes)
    state = create_state(create_model_from_config(config), config)
    images = jnp.zeros((config.batch_size, config.tile_size, config.tile_size, 1))
    batch = Batch(images, images, jnp.full(config.batch_size, 10.0), images == 0)
    kept, planned = kept_bytes(state, batch) / 1e6, planned_bytes(config, state, batch) / 1e6
    return f"{changes or 'plain'}: kept {kept:.0f} MB, planned {planned:.0f} MB"


if __name__ == "__main__":
    batch_size, tile_size = (int(word) for word in (*sys.argv[1:], 8, 128)[:2])
    base = Config(batch_size=batch_size, tile_size=tile_size)
    print(f"unet_film, 32 features, depth 4, {batch_size} x {tile_size} px on {jax.devices()[0].device_kind}")
    for changes in ({}, {"remat": True}, {"precision": "bfloat16"}, {"precision": "bfloat16", "remat": True}):
        print(report(base, changes), flush=True)
