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
from forestgaps_jax.callbacks import run_folder
from forestgaps_jax.config import Config
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.sources import create_data, evaluation_sampler, load_sites
from forestgaps_jax.inference.comparison import format_table, score_baselines
from forestgaps_jax.loop import evaluate, predict, train
from forestgaps_jax.metrics import to_json
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.state import TrainState, create_state
from forestgaps_jax.types import Site

Scores = dict[str, dict[str, Any]]
"""Metrics by the predictor's name: model, grey_opening, all_gap."""

_DATA = ("dsm", "chm", "seed", "virtual_sites", "virtual_size", "virtual_resolution", "virtual_slope")
_SPLIT = ("tile_size", "tile_overlap", "min_valid_fraction", "block_size", "split_buffer")
_SPLIT += ("val_fraction", "test_fraction")


def run_training(config: Config) -> tuple[Path, Scores]:
    """Train, and score the best checkpoint on the test tiles.

    Args:
        config: the settings. The run folder is ``runs_dir/name``, or the first of ``name-2``, ``name-3``, ...
            that does not exist; ``run`` where there is no name.

    Returns:
        The run folder and the scores.

    Raises:
        ValueError: settings or rasters that cannot train.
        OSError: a raster that cannot be read.
    """
    folder = run_folder(replace(config, name=config.name or "run"), new=True)
    assert folder is not None
    config = replace(config, name=folder.name)
    sites = load_sites(config)
    data = create_data(sites, config)
    print(_describe(sites, data.train, config))
    state, history = train(create_state(create_model_from_config(config), config), config, data)
    _save_figure(folder, "history", figures.plot_history(history))
    if data.test is None:
        return folder, {}
    assert isinstance(data.test, TileSampler)
    best = checkpoint.best(folder / "checkpoints")
    state = checkpoint.restore(folder / "checkpoints", state, best).state
    return folder, _score(state, config, sites, data.test, folder, "test")


def run_evaluation(folder: str | Path, config: Config, which: Literal["best", "last"] = "best") -> Scores:
    """Score a run's checkpoint again: on its test tiles, or on all tiles of other data.

    Writes ``evaluation_metrics.json`` and figures beside the run's own, which stay.

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
    if not _is_own_data(config, Config.from_toml(folder / "config.toml")):
        sampler = evaluation_sampler(sites, config)
        return _score(state, config, sites, sampler, folder, "evaluation", "tiles of other data")
    sampler = create_data(sites, config).test
    if sampler is None:
        raise ValueError(
            "the run kept no test tiles (test_fraction = 0): name other rasters with --dsm and --chm"
        )
    assert isinstance(sampler, TileSampler)
    return _score(state, config, sites, sampler, folder, "evaluation")


def _score(
    state: TrainState,
    config: Config,
    sites: Sequence[Site],
    sampler: TileSampler,
    folder: Path,
    name: str,
    kind: str = "test tiles, which training never saw",
) -> Scores:
    scores = {
        "model": evaluate(state, config, sampler),
        **score_baselines(sites, np.asarray(sampler.places), config),
    }
    (folder / f"{name}_metrics.json").write_text(json.dumps(to_json(scores), indent=1), encoding="utf-8")
    _save_figure(folder, f"{name}_thresholds", figures.plot_thresholds(scores))
    if config.figure_tiles:
        _save_figure(folder, f"{name}_tiles", _tile_figure(state, config, sites, sampler))
    print(f"\n{len(sampler.places)} {kind}; each {config.tile_size} px, at every threshold\n")
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


def _is_own_data(config: Config, trained: Config) -> bool:
    """Whether the data are those of the training, split in the same way.

    Raises:
        ValueError: the same data, split in another way: a test tile could be one that was trained on.
    """
    before, now = trained.to_dict(), config.to_dict()
    if any(now[name] != before[name] for name in _DATA):
        return False
    for name in _SPLIT:
        if now[name] != before[name]:
            raise ValueError(
                f"{name} = {now[name]} would split the run's own rasters in another way than {name} = "
                f"{before[name]}, and test on what was trained on: leave it, or give other rasters"
            )
    return True


def _describe(sites: Sequence[Site], sampler: Any, config: Config) -> str:
    pixels = sum(site.valid.sum() for site in sites)
    area = sum(site.valid.sum() * site.grid.resolution**2 for site in sites) / 1e4
    names = ", ".join(site.name for site in sites[:6]) + (", ..." if len(sites) > 6 else "")
    return (
        f"{len(sites)} site(s), {area:.1f} ha, {pixels / 1e6:.2f} million pixels: {names}\n"
        f"{len(sampler.places)} training tiles of {config.tile_size} px, "
        f"{sampler.steps_per_epoch} steps an epoch, {config.epochs} epochs on {jax.devices()[0].device_kind}"
    )
