"""Peak memory of `predict_raster` by the height of the raster, each in a process of its own.

    python benchmarks/mapping_memory.py [WIDTH] [ROWS ...]

The network is nothing but a sigmoid of the height, so what is measured is reading, cutting, blending and
writing. "peak" is the largest resident set of the process (``ru_maxrss``), Python and jax included.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import rasterio
from rasterio.transform import Affine

from forestgaps_jax import Config
from forestgaps_jax.inference import predict_raster
from forestgaps_jax.state import init_state

TILE, THRESHOLDS = 128, (5.0, 10.0, 15.0, 20.0)


def sigmoid_of_height(params, model_state, dsm, threshold, rngs=None, train=False):
    return (threshold[:, None, None, None] - jnp.nan_to_num(dsm)) * params, model_state


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


def measure(rows: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dsm(Path(folder, "dsm.tif"), rows, width)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        config = Config(tile_size=TILE, depth=1, thresholds=THRESHOLDS)
        state = init_state(sigmoid_of_height, jnp.ones(()), config)
        maps = predict_raster(state, Path(folder, "dsm.tif"), out_folder=Path(folder, "maps"), config=config)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        assert abs(maps.gap_shares[15.0] - 0.5) < 0.01
    print(
        f"{rows} x {width} px, {len(THRESHOLDS)} thresholds: peak {peak:.0f} MB ({before:.0f} before mapping)"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(int(sys.argv[2]), int(sys.argv[3]))
    else:
        width, *rows = [int(word) for word in sys.argv[1:]] or [4000]
        for count in rows or (2000, 4000, 8000):
            subprocess.run([sys.executable, __file__, "--one", str(count), str(width)], check=True)
