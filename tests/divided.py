"""A process of eight CPU devices: what they tell each other in a training step; one line of JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.divided
"""

import json
from dataclasses import replace

import jax
from jax.sharding import PartitionSpec

from forestgaps_jax import create_state
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.data.placing import on_devices
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.parallel import Devices
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import predicts_heights, train_step
from forestgaps_jax.totals import Totals
from tests.conftest import TINY
from tests.hlo import collectives, tiles_convolved

DEVICES = 8
GROUND = replace(TINY, batch_size=DEVICES, model_name="unet_ground", thresholds_per_tile=2)
CASES = {
    "batch": (GROUND, "batch"),
    "sampler": (replace(GROUND, augment_resolution=0.5, augment_relief=5.0), "sampler"),
    "together": (replace(GROUND, shard_rasters="always"), "sampler"),
    "heights": (replace(TINY, batch_size=DEVICES, model_name="unet_regression", loss_type="mse"), "batch"),
    "unet_film": (replace(TINY, batch_size=DEVICES), "batch"),
}


def compiled(config, kind: str, whole: bool = False) -> str:
    """HLO of a step on a mesh; ``whole``: of one that gives back the batch it made, on every device."""
    devices = Devices.of(DEVICES)
    sampler = create_data([virtual_forest(1, (64, 80), slope=20.0)], config).train
    state = create_state(create_model_from_config(config), config)
    recipe = make_recipe(config, sampler.steps_per_epoch)
    batch = jax.device_get(jax.jit(sampler.sample)(0))
    source = on_devices(sampler, devices) if kind == "sampler" else devices.share(batch)
    totals = Totals.zeros(config.thresholds, training=True, heights=predicts_heights(recipe.loss))

    def step(state, totals, source):
        after = train_step(recipe)(state, totals, source)
        return after, jax.lax.with_sharding_constraint(source.dsm, PartitionSpec()) if whole else None

    lower = devices.run(jax.jit(step).lower)
    return lower(devices.place_state(state), devices.replicate(totals), source).compile().as_text()


def told(text: str) -> dict:
    """Ways in which devices tell each other things, with the largest of these, and a device's tiles."""
    found = collectives(text)
    return {
        "largest": {way: max(elements for kind, elements in found if kind == way) for way, _ in found},
        "tiles": tiles_convolved(text),
    }


if __name__ == "__main__":
    cases = {name: told(compiled(*case)) for name, case in CASES.items()}
    print(json.dumps(cases | {"gathering": told(compiled(*CASES["batch"], whole=True))}))
