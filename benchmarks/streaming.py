"""Memory over an epoch of rasters 20 times larger than a limit, and what a training step waits for its tiles.

    python benchmarks/streaming.py [--limit 64] [--times 20] [--folder FOLDER] [--json FILE]

Pairs of uncompressed GeoTIFFs in blocks of 256 px, heights of noise, are written to a temporary folder: TIMES
of them, each of LIMIT MB. "Memory" is the resident set of the process (/proc/self/statm), Python and jax
included, while one shuffled, augmented epoch over all of them is read, put on the device and labelled;
"growth" is the most after the first quarter of the epoch above the most within it.

"Step" is a training step of a small unet_film on the tiles of the first pair: from the stream, from the
sampler that holds the same pair on the device, and on one fixed batch; they take turns, an epoch each round.
"stall" is the share of the stream's step that the fixed batch does not take. Files were just written, so the
system may have them in its cache: a disk that is slower than 8 * pixels bytes a step adds to it.
"""

import argparse
import json
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rasterio
from rasterio.transform import Affine
from timing import quartiles

from forestgaps_jax import Config, create_state
from forestgaps_jax.data import create_data, read_site, stream
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.steps import make_train_step
from forestgaps_jax.totals import Totals

CONFIG = Config(features=8, depth=3, batch_size=8, tile_size=128, tile_overlap=0.0, split_buffer=0.0)
STEPS = 20
BLOCK = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=int, default=64, help="MB of a pair")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; a temporary one is removed")
    parser.add_argument("--json", help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        side = int(np.sqrt(options.limit * 1e6 / 8)) // BLOCK * BLOCK
        for number in range(options.times):
            write_pair(Path(folder), number, side)
        found = {"device": jax.devices()[0].device_kind, "limit_mb": options.limit, "times": options.times}
        found |= memory(folder) | steps(Path(folder), options.rounds)
    print(json.dumps(found, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


def write_pair(folder: Path, number: int, side: int) -> None:
    rng = np.random.default_rng(number)
    profile = {"height": side, "width": side, "count": 1, "dtype": "float32", "crs": "EPSG:32617"}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    place = Affine(1.0, 0, 500_000.0 + number * side, 0, -1.0, 5_000_000.0)
    names = [folder / f"{number:03d}_{kind}.tif" for kind in ("DSM", "CHM")]
    for name, ground in zip(names, (100.0, 0.0), strict=True):
        with rasterio.open(name, "w", driver="GTiff", transform=place, **profile) as dataset:
            for first in range(0, side, BLOCK):
                strip = ground + rng.uniform(0, 30, (1, BLOCK, side)).astype(np.float32)
                dataset.write(strip, window=rasterio.windows.Window(0, first, side, BLOCK))


def memory(folder: str) -> dict[str, Any]:
    """Resident memory by batch, MB, over one epoch."""
    source = stream(folder, CONFIG)
    sample = jax.jit(lambda batch, step: batch.sample(step).mask.sum())
    resident, begin = [], time.perf_counter()
    for number, batch in enumerate(source):
        sample(batch, jnp.int32(number)).block_until_ready()
        resident.append(resident_mb())
    seconds = time.perf_counter() - begin
    quarter = len(resident) // 4
    warm, later = max(resident[:quarter]), max(resident[quarter:])
    spread = [round(resident[i]) for i in np.linspace(0, len(resident) - 1, 9).astype(int)]
    pixels = sum(pair.shape[0] * pair.shape[1] for pair in source.pairs)
    return {
        "rasters_mb": round(8 * pixels / 1e6),
        "tiles": len(source.places),
        "epoch_seconds": round(seconds, 1),
        "tiles_a_second": round(len(source.places) / seconds),
        "resident_mb_along_the_epoch": spread,
        "growth_mb": round(later - warm, 1),
    }


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def steps(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a training step, by where its batch comes from; medians and quartiles of rounds."""
    pair = folder / "000_DSM.tif", folder / "000_CHM.tif"
    config = Config(**CONFIG.to_dict() | {"val_fraction": 0.0, "test_fraction": 0.0})
    sampler: Any = create_data([read_site(*pair)], config).train
    streamed = stream([pair], config)
    step = make_train_step(make_recipe(config, sampler.steps_per_epoch))
    state = create_state(create_model_from_config(config), config)
    first = next(iter(streamed))
    sources = {
        "stream": lambda epoch: streamed.epoch(epoch),
        "sampler": lambda epoch: cycle([sampler]),
        "fixed batch": lambda epoch: cycle([jax.jit(lambda item: item.sample(0))(first)]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(rounds + 1):
        for name, begin_epoch in sources.items():
            batches = iter(begin_epoch(number))
            passed = run(step, jax.tree.map(jnp.copy, state), config, batches)
            if number:  # the first compiles
                seconds[name].append(passed)
    times = {name: np.array(values) for name, values in seconds.items()}
    stall = 1 - times["fixed batch"] / times["stream"]
    waits = {
        "stall_stream": quartiles(stall),
        "stall_sampler": quartiles(1 - times["fixed batch"] / times["sampler"]),
    }
    return {f"step_{name.replace(' ', '_')}_s": quartiles(values) for name, values in times.items()} | waits


def run(step: Any, state: Any, config: Config, batches: Any) -> float:
    """Seconds of one of some steps, after two that fill what is read ahead."""
    totals = Totals.zeros(config.thresholds)
    for batch in islice(batches, 2):
        state, totals, logs = step(state, totals, batch)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for batch in islice(batches, STEPS):
        state, totals, logs = step(state, totals, batch)
    jax.block_until_ready(logs)
    return (time.perf_counter() - begin) / STEPS


if __name__ == "__main__":
    main()
