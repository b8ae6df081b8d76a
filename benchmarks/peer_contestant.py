"""A contestant of `peer.py`: it builds, and then makes steps when it is told to.

    python benchmarks/peer_contestant.py NAME RASTERS.npz --what WHAT --batch N --tile N ...

It reads lines with a number of steps, or ``end``, and answers in lines of JSON. The name ``rasters`` writes
the file instead.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

THRESHOLDS = (5.0, 10.0, 15.0, 20.0)
SITES = 4

Rasters = list[tuple[np.ndarray, np.ndarray]]
"""Surface and canopy height of each site, metres."""


class Contestant(Protocol):
    """Something that makes steps."""

    device: str
    parameters: int

    def run(self, steps: int) -> None:
        """Make steps, and wait until they are done."""
        ...

    def device_peak_mb(self) -> float | None:
        """Most memory of the accelerator so far; None where there is none."""
        ...


def serve(options: argparse.Namespace) -> None:
    """The life of a child: it speaks in lines of JSON, and what libraries print goes to the errors."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, path = options.name, options.rasters
    begin = time.perf_counter()
    if name == "rasters":
        return write_rasters(path, side=max(4 * options.tile, 64))
    rasters = read_rasters(path)
    contestant: Contestant = (Ours if name.startswith("ours") else Theirs)(name, options, rasters)
    contestant.run(3)
    # The highest memory from here on is that of steps.
    build_peak, built = peak_mb(), time.perf_counter() - begin
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    about = {"device": contestant.device, "parameters": contestant.parameters, "build_seconds": built}
    print(json.dumps(about), file=channel, flush=True)
    for line in map(str.strip, sys.stdin):
        if line == "end":
            device = contestant.device_peak_mb()
            memory = {"peak_mb": peak_mb() if device is None else device, "build_peak_mb": build_peak}
            print(json.dumps(memory | {"host_peak_mb": peak_mb()}), file=channel, flush=True)
            break
        start, worked = time.perf_counter(), time.process_time()
        contestant.run(int(line))
        turn = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - worked}
        print(json.dumps(turn), file=channel, flush=True)


def peak_mb() -> float:
    """The most memory that this process has had, without its children."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_rasters(path: Path, side: int) -> None:
    """Draw the sites: heights are known everywhere, as the peer needs it."""
    from forestgaps_jax.data import virtual_forest

    sites = [virtual_forest(seed, (side, side), slope=8.0 * seed) for seed in range(SITES)]
    np.savez(path, dsm=[site.dsm for site in sites], chm=[site.chm for site in sites])


def read_rasters(path: Path) -> Rasters:
    with np.load(path) as arrays:
        return list(zip(arrays["dsm"], arrays["chm"], strict=True))


def fixed_batch(rasters: Rasters, batch: int, tile: int) -> dict[str, np.ndarray]:
    """Tiles side by side, ``[batch, tile, tile]``, with labels at the thresholds in turn."""
    per_side = rasters[0][0].shape[0] // tile
    starts = range(0, per_side * tile, tile)
    windows = [np.s_[row : row + tile, column : column + tile] for row in starts for column in starts]
    cut = [np.stack([dsm[window], chm[window]]) for window in windows for dsm, chm in rasters]
    dsm, chm = np.stack([cut[i % len(cut)] for i in range(batch)]).swapaxes(0, 1)
    threshold = np.resize(np.array(THRESHOLDS, np.float32), batch)
    mask = (chm < threshold[:, None, None]).astype(np.float32)
    return {"dsm": dsm, "chm": chm, "mask": mask, "threshold": threshold}


class Ours:
    """forestgaps_jax, as its training loop runs it."""

    def __init__(self, name: str, options: argparse.Namespace, rasters: Rasters):
        import jax
        import jax.numpy as jnp

        from forestgaps_jax import Batch, Config, create_state
        from forestgaps_jax.data import create_data
        from forestgaps_jax.models import create_model_from_config
        from forestgaps_jax.recipe import make_recipe
        from forestgaps_jax.steps import make_train_step, predict_step
        from forestgaps_jax.totals import Totals
        from forestgaps_jax.types import Grid, Site

        config = Config(
            batch_size=options.batch,
            tile_size=options.tile,
            features=options.features,
            depth=options.depth,
            thresholds=THRESHOLDS,
            precision="bfloat16" if name.endswith("-bf16") else "float32",
            val_fraction=0.0,
            test_fraction=0.0,
        )
        self.what, self.jax, self.predict_step = options.what, jax, predict_step
        self.state = create_state(create_model_from_config(config), config)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        self.device = jax.devices()[0].device_kind
        self.totals = Totals.zeros(config.thresholds, training=True)
        if options.what == "end-to-end":
            sites = [Site(f"site {i}", *pair, Grid(1.0)) for i, pair in enumerate(rasters)]
            self.source: Any = create_data(sites, config).train
            steps_per_epoch = self.source.steps_per_epoch
        else:
            parts = fixed_batch(rasters, options.batch, options.tile)
            images = {key: jnp.asarray(parts[key][..., None]) for key in ("dsm", "mask", "chm")}
            # What the sampler gives, which most users train from.
            self.source = Batch(
                threshold=jnp.asarray(parts["threshold"]),
                valid=jnp.ones(images["dsm"].shape, bool),
                resolution=jnp.ones(options.batch),
                **images,
            )
            steps_per_epoch = 100
        self.step = make_train_step(make_recipe(config, steps_per_epoch))

    def run(self, steps: int) -> None:
        """Make steps, and wait until they are done."""
        for _ in range(steps):
            if self.what == "inference":
                self.jax.block_until_ready(
                    self.predict_step(self.state, self.source.dsm, self.source.threshold)
                )
            else:
                self.state, self.totals, _ = self.step(self.state, self.totals, self.source)
        self.jax.block_until_ready((self.state, self.totals))

    def device_peak_mb(self) -> float | None:
        """Most memory of the accelerator so far; None where there is none."""
        found = self.jax.devices()[0].memory_stats()
        return found["peak_bytes_in_use"] / 1e6 if found else None


class Theirs:
    """PyTorch, in one of the variants of `torch_peer`."""

    def __init__(self, name: str, options: argparse.Namespace, rasters: Rasters):
        import torch
        import torch_peer

        self.torch, self.what = torch, options.what
        self.place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_flush_denormal(True)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX has it; nothing on a CPU
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        network, variant = torch_peer.FiLMUNet(options.features, options.depth), torch_peer.VARIANTS[name]
        self.parameters = sum(p.numel() for p in network.parameters())
        self.device = torch.cuda.get_device_name() if self.place.type == "cuda" else "cpu"
        parts = fixed_batch(rasters, options.batch, options.tile)
        dsm, mask = (torch.from_numpy(parts[key][:, None]).to(self.place) for key in ("dsm", "mask"))
        batch = torch_peer.Tiles(dsm, mask, torch.from_numpy(parts["threshold"]).to(self.place))
        if options.what == "inference":
            self.predictor = torch_peer.Predictor(network, variant, self.place)
        else:
            self.trainer = torch_peer.Trainer(network, variant, THRESHOLDS, self.place)
        self.batches: Iterator[torch_peer.Tiles] = repeat(batch)
        self.batch = batch
        if options.what == "end-to-end":
            workers = max((os.cpu_count() or 1) // 2, 1)
            dataset = torch_peer.RandomTiles(rasters, options.tile, THRESHOLDS)
            self.batches = torch_peer.load_tiles(dataset, options.batch, workers, self.place)

    def run(self, steps: int) -> None:
        """Make steps, and wait until they are done."""
        for _ in range(steps):
            if self.what == "inference":
                self.predictor.predict(self.batch.dsm, self.batch.threshold)
                self._wait()
            else:
                self.trainer.step(next(self.batches))
        self._wait()

    def _wait(self) -> None:
        if self.place.type == "cuda":
            self.torch.cuda.synchronize()

    def device_peak_mb(self) -> float | None:
        """Most memory of the accelerator so far; None where there is none."""
        on_gpu = self.place.type == "cuda"
        return self.torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("rasters", type=Path)
    parser.add_argument("--what", required=True)
    for size in ("batch", "tile", "features", "depth"):
        parser.add_argument(f"--{size}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    serve(parse())
