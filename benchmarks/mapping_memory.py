"""Time and peak memory of `predict_raster` by the size of the raster, each in a process of its own.

    python benchmarks/mapping_memory.py --width 4000 --rows 2000 4000 8000
    python benchmarks/mapping_memory.py --width 20000 --rows 20000 --run runs/general

Without a run, the network is nothing but a sigmoid of the height, so what is measured is reading, cutting,
blending and writing. "peak" is the largest resident set of the process (``ru_maxrss``), Python and jax
included.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import rasterio
from rasterio.transform import Affine

from forestgaps_jax import Config, TrainState
from forestgaps_jax.inference import load_run, predict_raster
from forestgaps_jax.state import init_state

THRESHOLDS = (5.0, 10.0, 15.0, 20.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 4000, 8000])
    parser.add_argument("--run", help="a run folder, instead of the sigmoid")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        measure(options.rows[0], options.width, options.run)
        return
    for rows in options.rows:
        run = ["--run", options.run] if options.run else []
        size = ["--rows", str(rows), "--width", str(options.width)]
        subprocess.run([sys.executable, __file__, "--alone", *size, *run], check=True)


def sigmoid_of_height(params, model_state, dsm, threshold, rngs=None, train=False):
    return (threshold[:, None, None, None] - jnp.nan_to_num(dsm)) * params, model_state


def network(run: str | None) -> tuple[TrainState, Config]:
    if run:
        return load_run(run, "last")
    config = Config(tile_size=128, depth=1, thresholds=THRESHOLDS)
    return init_state(sigmoid_of_height, jnp.ones(()), config), config


def write_dsm(path: Path, rows: int, width: int) -> None:
    """A DSM of noise, written a strip at a time."""
    rng = np.random.default_rng(0)
    place = Affine(1.0, 0, 500_000.0, 0, -1.0, 5_000_000.0)
    profile = {"height": rows, "width": width, "count": 1, "dtype": "float32", "crs": "EPSG:32617"}
    with rasterio.open(path, "w", driver="GTiff", transform=place, blockysize=64, **profile) as dataset:
        for first in range(0, rows, 64):
            strip = rng.uniform(0, 30, (1, min(64, rows - first), width)).astype(np.float32)
            window = rasterio.windows.Window(0, first, width, strip.shape[1])
            dataset.write(strip, window=window)


def measure(rows: int, width: int, run: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dsm = Path(folder, "dsm.tif")
        write_dsm(dsm, rows, width)
        state, config = network(run)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.perf_counter()
        maps = predict_raster(state, dsm, THRESHOLDS, Path(folder, "maps"), config=config)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        assert run or abs(maps.gap_shares[15.0] - 0.5) < 0.01
    size = f"{rows} x {width} px, {len(THRESHOLDS)} thresholds"
    print(f"{size}: {seconds:.0f} s, peak {peak:.0f} MB ({before:.0f} before mapping)", flush=True)


if __name__ == "__main__":
    main()
