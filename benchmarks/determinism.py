"""What makes the same training come out differently, and by how much.

    python benchmarks/determinism.py

The same training (200 steps of unet_film on virtual forests, same seed) is run in processes of their own
under conditions that ought not to matter, and compared with the first: the largest difference of a
parameter, relative to the largest parameter, and the difference of the validation IoU. What differs by 0 is
the same bit for bit.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CHILD = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from forestgaps_jax import Config, Data, create_state, evaluate, train
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import make_train_step
from forestgaps_jax.totals import Totals

out, settings, devices = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
config = Config(**({"epochs": 8, "batch_size": 8, "tile_size": 32, "depth": 2, "features": 8,
                    "split_buffer": 0.0, "use_progress_bar": False} | settings))
data = create_data([virtual_forest(seed, (192, 192)) for seed in range(2)], config)
recipe = make_recipe(config, 25)
state = create_state(create_model_from_config(config), config)
step, totals = make_train_step(recipe), Totals.zeros(config.thresholds, training=True)
sample = jax.jit(data.train.sample)
if devices > 1:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    state, totals = jax.device_put((state, totals), whole)
for number in range(200):
    batch = jax.device_get(sample(jnp.int32(number)))
    if devices > 1:
        batch = jax.device_put(batch, split)
    state, totals, logs = step(state, totals, batch)
state = jax.device_put(jax.device_get(state), jax.devices()[0])
leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state.params)]
np.savez(out, params=np.concatenate(leaves), iou=evaluate(state, config, data.val)["iou"])
"""

VARIANTS = {
    "the same again": {},
    "one core instead of two": {"cores": "0"},
    "2 devices (virtual, of one CPU)": {"devices": 2},
    "8 devices (virtual, of one CPU)": {"devices": 8},
    "precision = bfloat16": {"settings": {"precision": "bfloat16"}},
    "remat = true": {"settings": {"remat": True}},
    "another seed": {"settings": {"seed": 1}},
}


def run(
    folder: Path, cores: str = "", devices: int = 1, settings: dict | None = None
) -> dict[str, np.ndarray]:
    """Parameters and IoU of a training in a process of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    command = [sys.executable, "-c", CHILD, str(folder / "out.npz"), json.dumps(settings or {}), str(devices)]
    prefix = ["taskset", "-c", cores] if cores else []
    subprocess.run(prefix + command, check=True, env={**os.environ, "XLA_FLAGS": flags})
    with np.load(folder / "out.npz") as arrays:
        return dict(arrays)


def main() -> None:
    """Print a row for each condition."""
    with tempfile.TemporaryDirectory() as place:
        first = run(Path(place))
        print(f"{'condition':36} {'parameters':>12} {'IoU':>10}   (IoU of the first: {first['iou']:.4f})")
        for name, variant in VARIANTS.items():
            other = run(Path(place), **variant)
            off = np.abs(other["params"] - first["params"]).max() / np.abs(first["params"]).max()
            print(f"{name:36} {off:12.2g} {other['iou'] - first['iou']:+10.4f}", flush=True)


if __name__ == "__main__":
    main()
