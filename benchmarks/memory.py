"""Memory that one training step needs beside its arguments, by precision and rematerialisation.

    python benchmarks/memory.py [BATCH_SIZE] [TILE_SIZE]

As XLA plans it (``memory_analysis``): exact for this program and device, and nothing is run.
"""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp

from forestgaps_jax import Batch, Config, create_state
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import make_train_step
from forestgaps_jax.totals import Totals


def temporary_bytes(config: Config) -> int:
    state = create_state(create_model_from_config(config), config)
    images = jnp.zeros((config.batch_size, config.tile_size, config.tile_size, 1))
    batch = Batch(images, images, jnp.full(config.batch_size, 10.0), images == 0)
    step = make_train_step(make_recipe(config, 100))
    lowered = step.lower(state, Totals.zeros(config.thresholds), batch)  # type: ignore[attr-defined]
    return lowered.compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    batch_size, tile_size = (int(word) for word in (*sys.argv[1:], 8, 128)[:2])
    base = Config(batch_size=batch_size, tile_size=tile_size)
    print(f"unet_film, 32 features, depth 4, {batch_size} x {tile_size} px on {jax.devices()[0].device_kind}")
    for changes in ({}, {"remat": True}, {"precision": "bfloat16"}, {"precision": "bfloat16", "remat": True}):
        print(f"{changes or 'plain'}: {temporary_bytes(replace(base, **changes)) / 1e6:.0f} MB")
