"""A run from its settings to its folder: read, train, score, draw."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax import checkpoint, figures
from forestgaps_jax.config import Config
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.sources import create_data, evaluation_sampler, load_sites
from forestgaps_jax.data.tiles import all_tiles
from forestgaps_jax.inference.comparison import format_table, score_baselines
from forestgaps_jax.loop import evaluate, predict, train
from forestgaps_jax.metrics import to_json
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.state import TrainState, create_state
from forestgaps_jax.types import Site

Scores = dict[str, dict[str, Any]]
"""Metrics by the predictor's name: model, opening, all_gap."""


def run_training(config: Config) -> tuple[Path, Scores]:
    """Train, and score the best checkpoint on the test tiles.

    Args:
        config: the settings; the run folder is ``config.runs_dir/config.name``, with ``-2``, ``-3``, ...
            appended where it exists, and ``run`` where there is no name.

    Returns:
        The run folder and the scores.

    Raises:
        ValueError: settings or rasters that cannot train.
        OSError: a raster that cannot be read.
    """
    config = replace(config, name=_free_name(config))
    sites = load_sites(config)
    data = create_data(sites, config)
    print(_describe(sites, data.train, config))
    state, history = train(create_state(create_model_from_config(config), config), config, data)
    folder = Path(config.runs_dir) / config.name
    _save_figure(folder, "history", figures.plot_history(history))
    if data.test is None:
        return folder, {}
    assert isinstance(data.test, TileSampler)
    best = checkpoint.best(folder / "checkpoints")
    state = checkpoint.restore(folder / "checkpoints", state, best).state
    return folder, _score(state, config, sites, data.test, folder, "test")


def run_evaluation(folder: str | Path, config: Config, which: Literal["best", "last"] = "best") -> Scores:
    """Score a run's checkpoint again: on its test tiles, or on all tiles of other data.

    Args:
        folder: the run folder.
        config: the run's settings, perhaps with other rasters or another seed for its virtual forests.
        which: the checkpoint.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
    """
    folder = Path(folder)
    pick = checkpoint.best if which == "best" else checkpoint.latest
    state = create_state(create_model_from_config(config), config)
    step = pick(folder / "checkpoints")
    state = checkpoint.restore(folder / "checkpoints", state, step).state
    sites = load_sites(config)
    if _same_data(config, Config.from_toml(folder / "config.toml")):
        sampler = create_data(sites, config).test
        assert isinstance(sampler, TileSampler)
        return _score(state, config, sites, sampler, folder, "test")
    sampler = evaluation_sampler(sites, all_tiles(sites, config), config)
    return _score(state, config, sites, sampler, folder, "evaluation")


def _score(
    state: TrainState, config: Config, sites: Sequence[Site], sampler: TileSampler, folder: Path, name: str
) -> Scores:
    scores = {
        "model": evaluate(state, config, sampler),
        **score_baselines(sites, np.asarray(sampler.places), config),
    }
    (folder / f"{name}_metrics.json").write_text(json.dumps(to_json(scores), indent=1), encoding="utf-8")
    _save_figure(folder, f"{name}_thresholds", figures.plot_thresholds(scores))
    if config.figure_tiles:
        _save_figure(folder, f"{name}_tiles", _tile_figure(state, config, sites, sampler))
    print(f"\n{len(sampler.places)} {name} tiles of {config.tile_size} px that training never saw\n")
    print(format_table(scores))
    return scores


def _tile_figure(state: TrainState, config: Config, sites: Sequence[Site], sampler: TileSampler) -> Any:
    """Tiles spread over the sampler's, each at another threshold."""
    count = min(config.figure_tiles, len(sampler.places))
    chosen = np.linspace(0, len(sampler.places) - 1, count).round().astype(int)
    thresholds = [config.thresholds[i % len(config.thresholds)] for i in range(count)]
    tiles = np.asarray(sampler.rasters.cut(sampler.places[chosen], config.tile_size))
    dsm, chm = tiles[..., 0], tiles[..., 1]
    truth, valid = chm < np.array(thresholds)[:, None, None], np.isfinite(dsm) & np.isfinite(chm)
    probability = np.asarray(predict(state, dsm, jnp.array(thresholds)))[..., 0]
    resolution = sites[int(sampler.places[chosen[0], 0])].grid.resolution
    return figures.plot_tiles(dsm, truth, probability, thresholds, valid, resolution)


def _save_figure(folder: Path, name: str, figure: Any) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.png", dpi=120)


def _free_name(config: Config) -> str:
    """The name, or the name with the first number whose folder does not exist."""
    name = config.name or "run"
    names = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(n for n in names if not (Path(config.runs_dir) / n).exists())


def _same_data(a: Config, b: Config) -> bool:
    names = [name for name in a.to_dict() if name.startswith("virtual_")] + ["dsm", "chm", "seed"]
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _describe(sites: Sequence[Site], sampler: Any, config: Config) -> str:
    pixels = sum(site.valid.sum() for site in sites)
    area = sum(site.valid.sum() * site.grid.resolution**2 for site in sites) / 1e4
    names = ", ".join(site.name for site in sites[:6]) + (", ..." if len(sites) > 6 else "")
    return (
        f"{len(sites)} site(s), {area:.1f} ha, {pixels / 1e6:.2f} million pixels: {names}\n"
        f"{len(sampler.places)} training tiles of {config.tile_size} px, "
        f"{sampler.steps_per_epoch} steps an epoch, {config.epochs} epochs on {jax.devices()[0].device_kind}"
    )
