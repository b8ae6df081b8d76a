"""What the network is given, one change at a time: gap IoU on sites that did not train, beside the opening.

    python benchmarks/ablation.py --data ../shared/data --out OUT [--variants "film: mean" ground ...]

A few hundred steps of 8 tiles of 128 px with the settings of configs/general.toml but for what is named, on
virtual forests and two tropical canopies on virtual terrain. Networks of pixels have 8 features and a depth
of 4: they still take longer than those of the ground with 32. Scored on other virtual forests, on a boreal
canopy on gentle and on steep terrain, and on farmland: not on the sites that benchmarks/generalisation.py
reports. One seed: differences of 0.02 mean nothing.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax.numpy as jnp
import numpy as np
from flax import nnx

from forestgaps_jax import Config, TrainState, create_state, train
from forestgaps_jax.data import create_data, load_sites, put_on_terrain, read_chm, read_site, virtual_forest
from forestgaps_jax.inference import opening_baseline, predict_array
from forestgaps_jax.models import create_model_from_config, network
from forestgaps_jax.models.surface import surface_channels
from forestgaps_jax.types import Site

FILM = {"model_name": "unet_film", "features": 8, "depth": 4, "thresholds_per_tile": 1}
DISTRIBUTION = {"model_name": "unet_distribution", "features": 8, "depth": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "film: mean": {**FILM, "detrend": False, "opening_windows": ()},
    "film: plane": {**FILM, "opening_windows": ()},
    "film: openings": FILM,
    "film: openings, gradients": FILM,
    "film: openings, list": {**FILM, "threshold_range": None},
    "film: openings, no pixel size": FILM,
    "film: openings, context": {**FILM, "tile_size": 192, "batch_size": 4},
    "regression": {**FILM, "model_name": "unet_regression", "loss_type": "huber"},
    "distribution: one threshold": {**DISTRIBUTION, "thresholds_per_tile": 1},
    "distribution": DISTRIBUTION,
    "ground: one threshold": {"thresholds_per_tile": 1},
    "ground": {},
    "ground: list": {"threshold_range": None, "thresholds_per_tile": 4},
    "ground: focal": {"focal_gamma": 2.0},
    "ground: Dice of the batch": {"dice_reduction": "batch"},
    "ground: GroupNorm": {"norm": "group"},
}
THRESHOLDS = (2.0, 5.0, 7.5, 10.0, 15.0, 20.0)


def main() -> None:
    """Train and score the variants that are asked for; what is in the folder already is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real rasters")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    judges = _judges(options.data)
    for name in options.variants:
        with patch.object(network, "surface_channels", _channels(name)):
            state, config, seconds = _train(name, options)
            scores = {site.name: _ious(state, config, site) for site in judges}
        text = json.dumps({"seconds": seconds, "scores": scores})
        (options.out / f"{name.replace(': ', '_')}.json").write_text(text, encoding="utf-8")
        print(f"\n{name} ({seconds:.0f} s): IoU of the model / of the opening at {THRESHOLDS} m")
        for site, ious in scores.items():
            print(f"  {site:20s}", "  ".join(f"{m:.3f}/{o:.3f}" for m, o in ious), flush=True)


def _train(name: str, options: argparse.Namespace) -> tuple[TrainState, Config, float]:
    config = Config.from_toml(
        Path(__file__).parents[1] / "configs" / "general.toml",
        **{"val_fraction": 0.0, "test_fraction": 0.0, "virtual_share": 0.7, "use_progress_bar": False},
        chm_only=[str(options.data / "chm_only" / f"{c}.tif") for c in ("ALS_CHM_DUC", "ALS_CHM_CAU_2012")],
        **VARIANTS[name],
    )
    data = create_data(load_sites(config), config)
    config.epochs = max(1, round(options.steps / data.train.steps_per_epoch))
    model = create_model_from_config(config)
    if "gradients" in name:
        _widen_entry(model, len(config.opening_windows) + 3)
    state = create_state(model, config)
    if "no pixel size" in name:
        state = replace(state, apply=replace(state.apply, takes_resolution=False))
    start = time.perf_counter()
    state, _ = train(state, config, data, default_callbacks=False)
    return state, config, time.perf_counter() - start


def _channels(name: str) -> Callable[..., Any]:
    return _with_gradients if "gradients" in name else surface_channels


def _with_gradients(heights: Any, known: Any, detrend: bool, windows: Sequence[int]) -> Any:
    """The usual channels, and the surface's differences along rows and columns (m a pixel)."""
    channels = surface_channels(heights, known, detrend, windows)
    slopes = jnp.gradient(channels[..., :1], axis=(1, 2))
    return jnp.concatenate([channels, *(jnp.where(known, slope, 0.0) for slope in slopes)], axis=-1)


def _widen_entry(model: Any, channels: int) -> None:
    kernel = model.encoder[0].conv1.kernel
    more = np.random.default_rng(0).normal(0.0, 0.1, (3, 3, channels - kernel.shape[2], kernel.shape[3]))
    wider = jnp.concatenate([kernel[...], jnp.asarray(more, jnp.float32)], axis=2)
    model.encoder[0].conv1.kernel = nnx.Param(wider)


def _judges(data: Path) -> list[Site]:
    pair = [str(data / "ign" / f"ign_200_{kind}.tif") for kind in ("DSM", "CHM")]
    canopy = read_chm(data / "chm_only" / "beratools_chm_030.tif")
    return [
        virtual_forest(930, (384, 384), slope=30.0, closure=0.98, height=30.0, name="virtual, 30 deg"),
        virtual_forest(940, (384, 384), slope=40.0, closure=0.98, height=30.0, name="virtual, 40 deg"),
        virtual_forest(950, (384, 384), slope=10.0, closure=0.7, height=22.0, name="virtual, 10 deg"),
        replace(put_on_terrain(canopy, 1, 8.0), name="boreal, 8 deg"),
        replace(put_on_terrain(canopy, 2, 32.0), name="boreal, 32 deg"),
        replace(read_site(*pair), name="farmland"),
    ]


def _ious(state: TrainState, config: Config, site: Site) -> list[tuple[float, float]]:
    resolution = site.grid.resolution
    maps = predict_array(state, site.dsm, THRESHOLDS, resolution=resolution, tile_size=config.tile_size)
    opened = opening_baseline(site.dsm, resolution)
    known = site.valid
    return [
        (_iou(maps[i] >= 0.5, site.chm < t, known), _iou(opened < t, site.chm < t, known))
        for i, t in enumerate(THRESHOLDS)
    ]


def _iou(predicted: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
    union = ((predicted | truth) & known).sum()
    return float((predicted & truth & known).sum() / union) if union else float("nan")


if __name__ == "__main__":
    main()
