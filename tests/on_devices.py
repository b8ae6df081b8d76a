"""A process of eight CPU devices that trains on one, four and all of them; one line of JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.on_devices FOLDER
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from forestgaps_jax import checkpoint, create_state, evaluate, train
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.data.placing import on_devices
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.parallel import Devices
from tests.conftest import TINY

CONFIG = replace(
    TINY,
    batch_size=8,
    augment_relief=5.0,
    opening_windows=(5,),
    val_fraction=0.3,
    ema_decay=0.9,
    save_frequency=1,
)
SITES = [virtual_forest(seed, (96, 96), slope=20.0) for seed in (1, 2)]
DATA = create_data(SITES, CONFIG)
TOGETHER = replace(CONFIG, shard_rasters="always")


class Warnings(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.said.append(record.getMessage())


def trained(settings: dict[str, Any], source: Any = DATA, **options: Any) -> tuple[Any, dict[str, Any]]:
    """State and outcome of a training with other settings."""
    config = replace(CONFIG, **settings)
    model = create_model_from_config(config)
    state, history = train(create_state(model, config), config, source, **options)
    scores = evaluate(state, config, DATA.test)
    metrics = filter(None, (*history["train_metrics"], *history["val_metrics"], scores))
    counts = [m["confusion_matrix"] for m in metrics]
    return state, {
        "loss": history["train_loss"] + history["val_loss"] + [scores["loss"]],
        "counts": [[c[cell] for cell in ("tp", "fp", "fn", "tn")] for c in counts],
        "params": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]).tolist(),
        "devices": max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)),
    }


def resumed(folder: Path) -> dict[str, Any]:
    """Trainings that begin on four devices, and go on from there on others."""
    state, _ = trained({"epochs": 1, "devices": 4}, folder=folder)
    outcomes = {}
    for count in (1, 8):
        there = checkpoint.restore(folder / "checkpoints", state).state
        config = replace(CONFIG, devices=count)
        outcomes[str(count)] = trained_on(there, config)
    return outcomes


def trained_on(state: Any, config: Any) -> list[float]:
    """Parameters after what is left of a training."""
    state, _ = train(state, config, DATA)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]).tolist()


def zip_leaves(one: Any, other: Any) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """Path and both values of each leaf."""
    leaves = zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True)
    return [(path, np.asarray(first), np.asarray(second)) for (path, first), second in leaves]


def alike(one: np.ndarray, other: np.ndarray, rounded: bool) -> bool:
    """Bit for bit, or but for a rounding: some processors round augmented heights otherwise."""
    if not rounded:
        return np.array_equal(one, other, equal_nan=True)
    rounding = float(np.finfo(np.float32).eps)
    return one.shape == other.shape and np.allclose(one, other, rtol=rounding, atol=0.0, equal_nan=True)


def held_together() -> dict[str, Any]:
    """Of rasters in parts on eight devices: their parts, and what differs from those of rasters on one."""
    data, devices = create_data(SITES, TOGETHER), Devices.of(0)
    sample = jax.jit(lambda sampler, step: sampler.sample(step))
    pairs = [
        (sample(whole, step), run(placed, step))
        for whole, parts in ((DATA.train, data.train), (DATA.val, data.val), (DATA.test, data.test))
        for run, placed in ((sample, parts), (devices.run(sample), on_devices(parts, devices)))
        for step in range(3)
    ]
    pairs.append((DATA.val.read([0, 3, 1]), data.val.read([0, 3, 1])))
    same = [
        alike(*both, rounded=number < 6 and jax.tree_util.keystr(path) == ".dsm")
        for number, (one, other) in enumerate(pairs)
        for (path, *both) in zip_leaves(one, other)
    ]
    dsm = data.train.rasters.dsm
    try:
        on_devices(data.train, Devices.of(4))
    except ValueError as error:
        refused = str(error)
    return {
        "compared": len(same),
        "different": same.count(False),
        "parts": [shard.data.size for shard in dsm.addressable_shards],
        "pixels": sum(site.dsm.size for site in SITES),
        "refused": refused,
    }


def divided_bytes() -> dict[str, float]:
    """Share of the parameters and the optimizer's numbers that the first of four neighbours holds."""
    config = replace(CONFIG, features=8)
    state = create_state(create_model_from_config(config), config)
    placed = Devices.of(0, 4).place_state(state)
    kernels = [leaf for leaf in jax.tree.leaves(placed) if leaf.ndim == 4 and leaf.shape[-1] % 4 == 0]
    return {
        "kernels": len(kernels),
        "largest_share": max(k.addressable_data(0).size / k.size for k in kernels),
    }


def main() -> None:
    folder, log = Path(sys.argv[1]), Warnings()
    logging.getLogger("forestgaps_jax").addHandler(log)
    batches = [jax.device_get(jax.jit(DATA.train.sample)(step)) for step in range(3)]
    cases = {
        "one": trained({"devices": 1})[1],
        "four": trained({"devices": 4})[1],
        "eight": trained({})[1],
        "fsdp": trained({"fsdp": 4})[1],
        "together": trained({"shard_rasters": "always"}, SITES)[1],
        "parts": trained({"batch_norm_parts": 8})[1],
        "parts_of_one": trained({"batch_norm_parts": 8, "devices": 1})[1],
        "batches": trained({"val_fraction": 0.0}, {"train": batches})[1],
        "batches_of_one": trained({"val_fraction": 0.0, "devices": 1}, {"train": batches})[1],
    }
    folder.mkdir()
    told = {"resumed": resumed(folder), "divided": divided_bytes(), "rasters": held_together()}
    print(json.dumps({**cases, **told, "warnings": log.said}))


if __name__ == "__main__":
    main()
