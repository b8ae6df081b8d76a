r"""How time and memory grow with the task; Markdown tables, and docs/growth.png.

Parts:
    steps       seconds and planned memory of a training step by batch size, tile size and features: each is
                varied alone, around a base. All sizes take turns.
    thresholds  steps a second by the number of listed thresholds
    maps        megapixels a second of `evaluate` with its metrics (pixels scored, once a threshold), of
                `predict` on one batch, and of `predict_raster` from a GeoTIFF to its maps (pixels of the map)

Planned memory is what XLA plans for the step: arguments, results that do not reuse them, and temporaries.
The exponent is the slope between the least and the largest size in logarithms: 1 is proportional.

Examples:
    python benchmarks/growth.py --json benchmarks/runs/growth.json
    python benchmarks/growth.py --parts steps --models unet_film --rounds 3
    python benchmarks/growth.py --large                                # sizes for a GPU
    python benchmarks/growth.py --redraw benchmarks/runs/growth.json   # the tables and the figure again
"""

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
from growth_report import TABLES, draw
from timing import clocked, parser_of, quartiles, take_turns, where, write_record
from training_step import TrainingStep, random_batch

from forestgaps_jax import Config, create_state, evaluate, predict
from forestgaps_jax.data import virtual_forest, write_geotiff
from forestgaps_jax.inference import predict_raster
from forestgaps_jax.models import create_model_from_config

PARTS = ("steps", "thresholds", "maps")
SIZES = {"batch_size": (1, 4, 16), "tile_size": (64, 128, 256, 512), "features": (8, 16, 32, 64)}
LARGE = {"batch_size": (4, 16, 64, 256), "tile_size": (64, 128, 256, 512), "features": (16, 32, 64, 128)}
BASE = {"batch_size": 4, "tile_size": 128, "features": 16}
LARGE_BASE = {"batch_size": 16, "tile_size": 256, "features": 32}
LISTS = (2, 4, 8, 16, 32)


def main() -> None:
    options = parse()
    if options.redraw:
        found = json.loads(Path(options.redraw).read_text(encoding="utf-8"))
    else:
        measures = {"steps": steps, "thresholds": thresholds, "maps": maps}
        device = jax.devices()[0].device_kind
        found = {**where(), "settings": vars(options), "device": device, "base": base(options)}
        for part in options.parts:
            found[part] = measures[part](options)
            print(f"{part} measured", file=sys.stderr)
            write_record(options.json, found)
    print("\n\n".join(TABLES[part](found) for part in PARTS if part in found))
    if "steps" in found and options.figure:
        draw(found).savefig(options.figure, dpi=110)


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", default=["unet_film", "unet_ground"], metavar="NAME")
    parser.add_argument("--large", action="store_true", help="sizes for a GPU, in all parts")
    parser.add_argument("--raster", type=int, help="side of the mapped raster, px (1024; 4096 if --large)")
    parser.add_argument("--figure", default="docs/growth.png", metavar="FILE", help="where it goes; '': none")
    parser.add_argument("--redraw", metavar="FILE", help="a --json of before: measure nothing")
    options = parser.parse_args()
    options.raster = options.raster or (4096 if options.large else 1024)
    return options


def base(options: argparse.Namespace) -> dict[str, Any]:
    """The size that is varied."""
    return LARGE_BASE if options.large else BASE


def sizes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The base, and each axis varied alone; no size twice."""
    axes = LARGE if options.large else SIZES
    varied = [{**base(options), axis: value} for axis, values in axes.items() for value in values]
    return [size for i, size in enumerate(varied) if size not in varied[:i]]


def steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds, planned bytes and operations of each model and size."""
    rows = []
    for model in options.models:
        configs = [Config(model_name=model, **size) for size in sizes(options)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # compiling one does not fill two cores
            built = dict(zip(map(size_name, configs), pool.map(TrainingStep, configs), strict=True))
        ways = {name: partial(step.seconds, 1) for name, step in built.items()}
        seconds = take_turns(ways, options.rounds, warm_up=1)
        for (name, step), size in zip(built.items(), sizes(options), strict=True):
            told = {"planned_bytes": step.planned_bytes(), "flops": step.cost("flops")}
            rows.append({"model": model, **size, **told, "seconds": quartiles(seconds[name])})
    return rows


def size_name(config: Config) -> str:
    return f"{config.batch_size} x {config.tile_size} px, {config.features} features"


def thresholds(options: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Seconds of a step of the first model, by the number of listed thresholds."""
    built = {}
    for count in LISTS:
        listed = tuple(1.0 + height for height in range(count))
        built[str(count)] = TrainingStep(
            Config(model_name=options.models[0], thresholds=listed, **base(options))
        )
    ways = {count: partial(step.seconds, 3) for count, step in built.items()}
    seconds = take_turns(ways, 3 * options.rounds, warm_up=1)
    return {count: quartiles(values) for count, values in seconds.items()}


def maps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and pixels of evaluation, prediction and mapping."""
    site = virtual_forest(0, (options.raster, options.raster), slope=20.0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "forest_DSM.tif")
        write_geotiff(file, site.dsm, site.grid)
        for model in options.models:
            rows += mapped(Config(model_name=model, **base(options)), site, file, options.rounds)
    return rows


def mapped(config: Config, site: Any, file: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds and pixels of one network, its weights as they were initialised."""
    state = create_state(create_model_from_config(config), config)
    tiles = random_batch(config).dsm
    scored = evaluate(state, config, site)["confusion_matrix"]["total_pixels"]

    def map_raster(heights: tuple[float, ...]) -> None:
        predict_raster(state, file, heights, file.parent / "maps", config=config, overwrite=True)

    few, all_of_them = config.thresholds[1:2], config.thresholds
    ways = {
        f"evaluate, {len(all_of_them)} thresholds": partial(evaluate, state, config, site),
        "predict, 1 threshold": lambda: predict(state, tiles, 10.0).block_until_ready(),
        f"predict_raster, {len(few)} threshold": partial(map_raster, few),
        f"predict_raster, {len(all_of_them)} thresholds": partial(map_raster, all_of_them),
    }
    pixels = [scored, tiles.size, site.dsm.size, site.dsm.size]
    seconds = take_turns({name: clocked(way) for name, way in ways.items()}, rounds, warm_up=1)
    return [
        {"model": config.model_name, "what": name, "pixels": count, "seconds": quartiles(seconds[name])}
        for name, count in zip(ways, pixels, strict=True)
    ]


if __name__ == "__main__":
    main()
