"""A run from its settings to its folder: read, train, score, draw."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from forestgaps_jax import checkpoint, figures
from forestgaps_jax.callbacks import Monitor
from forestgaps_jax.compilation_cache import use_cache
from forestgaps_jax.config import Config
from forestgaps_jax.data import access
from forestgaps_jax.data.ground import refuse_shared_ground
from forestgaps_jax.data.pairs import with_pairs
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.inference.comparison import format_table, mean_iou_over_thresholds, score_baselines
from forestgaps_jax.inference.loading import load_run
from forestgaps_jax.loop import evaluate, predict, train
from forestgaps_jax.metrics import to_json
from forestgaps_jax.models import create_model_from_config, parameter_count
from forestgaps_jax.models.registry import REGRESSION_LOSSES
from forestgaps_jax.parallel import Devices, done_by_each, done_by_main, is_main, wait_for_all
from forestgaps_jax.run_folder import differing_settings, find_run, held, new_run_folder
from forestgaps_jax.state import TrainState, create_state
from forestgaps_jax.types import BatchSource, Data, Site

Scores = dict[str, dict[str, Any]]
"""Metrics by the predictor's name: model, grey_opening, all_gap."""

_VIRTUAL = {"virtual_sites", "virtual_size", "virtual_resolution", "virtual_slope"}
_VIRTUAL |= {"virtual_closure", "virtual_height"}
_SPLIT = {"seed", "tile_size", "tile_overlap", "min_valid_fraction", "block_size", "split_buffer"}
_SPLIT |= {"val_fraction", "test_fraction", "stream"}
_MODEL = {"model_name", "features", "depth", "norm", "height_scale", "spectral_norm"}
_MODEL |= {"detrend", "opening_windows"}


def run_training(config: Config, resume: Literal["auto", "never"] = "auto") -> tuple[Path, Scores]:
    """Train, and score the best checkpoint on the test tiles.

    Args:
        config: the settings. The run folder is ``runs_dir/name``, or the first of ``name-2``, ``name-3``, ...
            that is free; ``run`` where there is no name.
        resume: ``"auto"``: go on with the latest run of this name and these settings, from its newest
            checkpoint, as if it had never stopped; one that is finished is scored again.

    Returns:
        The run folder and the scores.

    Raises:
        ValueError: settings or rasters that cannot train.
        OSError: a raster that cannot be read, or a checkpoint that could not be written.
        DivergenceError: the loss was infinite or NaN for too long.
    """
    config = replace(config, name=config.name or "run")
    use_cache(config.compilation_cache_dir)
    # The model and the monitored metric come before the rasters, which may take long, to fail early.
    model = create_model_from_config(config)
    state = create_state(model, config)
    Monitor(config.monitor_metric, config.monitor_mode)
    config, sites, data = done_by_each(lambda: _opened(config))
    print(_describe(sites, data.train, config, model))
    folder = _run_folder(config, resume)
    with held(folder):
        state, history = train(state, config, data, folder=folder, resume="auto")
        wait_for_all("the last checkpoint is written")
        if is_main():
            _save_figure(folder, "history", figures.plot_history(history))
        if checkpoint.latest(folder / "checkpoints") != int(state.step):
            raise OSError(f"the end of the training could not be written to {folder}: make room and go on")
        if data.test is None:
            return folder, {}
        state = checkpoint.restore(folder / "checkpoints", state, "best").state
        return folder, _score(state, config, sites, data.test, folder, "test")


def _opened(config: Config) -> tuple[Config, access.Grounds, Data]:
    """The rasters of settings, and their split; which a process may not see that others see."""
    config, sites = access.open_sites(_with_absolute_paths(config))
    return config, sites, access.split(sites, config)


def _run_folder(config: Config, resume: Literal["auto", "never"]) -> Path:
    """The folder to train in; says which of those that are there it is, and why."""
    first = Path(config.runs_dir) / config.name
    if resume == "auto" and (found := find_run(config)) is not None:
        newest = checkpoint.latest(found / "checkpoints")
        print(f"going on with {found}, from {'its start' if newest is None else f'step {newest}'}")
        return found
    differing = differing_settings(config, first) if resume == "auto" and first.exists() else {}
    folder = new_run_folder(config)
    if differing:
        told = [f"{name} = {there}, now {here}" for name, (there, here) in sorted(differing.items())[:3]]
        more = ", ..." if len(differing) > 3 else ""
        print(f"{first} has other settings ({'; '.join(told)}{more}): this run is {folder}")
    return folder


def run_evaluation(folder: str | Path, config: Config, which: Literal["best", "last"] = "best") -> Scores:
    """Score a run's checkpoint again: on its test tiles, or on all tiles of other data.

    Writes ``evaluation_metrics.json`` and figures beside the run's own, which stay.

    Args:
        folder: the run folder.
        config: the run's settings, perhaps with other rasters or another seed for its virtual forests.
        which: the checkpoint.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: settings that would make the scores meaningless: another network, or data that trained.
    """
    folder, trained = Path(folder), Config.from_toml(Path(folder) / "config.toml")
    config = _without_what_else_trained(_with_absolute_paths(_of_sites_alone(config, trained)), trained)
    config.validate()
    use_cache(config.compilation_cache_dir)
    own = _is_own_data(config, trained)
    config, sites = access.open_sites(replace(config, stream=_stream_to_score(config, trained, own)))
    if not own:
        refuse_shared_ground(access.reopen(trained), sites)
    state, _ = load_run(folder, which, config)
    if not own:
        tiles = access.all_of(sites, config)
        return _score(state, config, sites, tiles, folder, "evaluation", "tiles of other ground")
    tiles = access.split(sites, config).test
    if tiles is None:
        raise ValueError("the run kept no test tiles (test_fraction = 0): name rasters with --dsm and --chm")
    return _score(state, config, sites, tiles, folder, "evaluation")


def _score(
    state: TrainState,
    config: Config,
    sites: access.Grounds,
    source: BatchSource,
    folder: Path,
    name: str,
    kind: str = "test tiles, which training never saw",
) -> Scores:
    assert isinstance(source, access.Tiles)
    scores = {"model": evaluate(state, config, source)}

    def compare() -> None:
        scores.update(score_baselines(sites, np.asarray(source.places), config))
        (folder / f"{name}_metrics.json").write_text(json.dumps(to_json(scores), indent=1), encoding="utf-8")
        _save_figure(folder, f"{name}_thresholds", figures.plot_thresholds(scores))
        if config.figure_tiles:
            _save_figure(folder, f"{name}_tiles", _tile_figure(state, config, source))

    # All wait for the baselines: a process that had ended before would take the main one for dead.
    done_by_main(compare)
    if is_main():
        _print_scores(scores, f"{len(source.places)} {kind}; each {config.tile_size} px, at every threshold")
    return scores


def _print_scores(scores: Scores, what: str) -> None:
    print(f"\n{what}\n")
    print(format_table(scores))
    if mean_iou_over_thresholds(scores["model"]) < mean_iou_over_thresholds(scores["grey_opening"]):
        print("\nHere the grey opening, which needs no training, is better than the model.")


def _tile_figure(state: TrainState, config: Config, source: access.Tiles) -> Any:
    """Tiles spread over the source's, each at another threshold."""
    count = min(config.figure_tiles, len(source.places))
    chosen = np.linspace(0, len(source.places) - 1, count).round().astype(int)
    thresholds = [config.thresholds[i % len(config.thresholds)] for i in range(count)]
    tiles, pixels = source.read(chosen.tolist())
    dsm, chm = tiles[..., 0], tiles[..., 1]
    truth, valid = chm < np.array(thresholds)[:, None, None], np.isfinite(dsm) & np.isfinite(chm)
    probability = np.asarray(predict(state, dsm, jnp.array(thresholds), pixels))[..., 0]
    if config.loss_type in REGRESSION_LOSSES:  # it says on which side of the threshold, not how surely
        probability = probability > 0.5
    return figures.plot_tiles(dsm, truth, probability, thresholds, valid, float(pixels[0]))


def _save_figure(folder: Path, name: str, figure: Any) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    figure.savefig(folder / "figures" / f"{name}.png", dpi=120)


def _is_own_data(config: Config, trained: Config) -> bool:
    """Whether the data are those of the training, split in the same way.

    Raises:
        ValueError: the network is described in another way than it was trained; only one of DSM and CHM is
            another; or the same data are split in another way, so that a test tile could have trained.
    """
    now, before = config.to_dict(), trained.to_dict()
    for settings in (now, before):  # what a run's folder says to be automatic was held in memory
        settings["stream"] = "always" if settings["stream"] == "always" else "never"
    other = {name for name in now if now[name] != before[name]}
    # Adaptive normalisation was chosen by the batch size.
    if wrong := sorted(other & (_MODEL | ({"batch_size"} if config.norm == "adaptive" else set()))):
        raise ValueError(
            f"{wrong[0]} = {now[wrong[0]]} is not what was trained: {before[wrong[0]]}; leave it"
        )
    if len(other & {"dsm", "chm"}) == 1:
        raise ValueError("other rasters need both: give --dsm and --chm")
    drawn = config.chm_only or config.virtual_share or not config.dsm
    if other & {"dsm", "chm", "chm_only", "virtual_share", *(("seed", *_VIRTUAL) if drawn else ())}:
        return False
    if wrong := sorted(other & _SPLIT):
        raise ValueError(
            f"{wrong[0]} = {now[wrong[0]]} would split the run's own rasters in another way than "
            f"{before[wrong[0]]}, and test on what was trained on: leave it, or give other rasters"
        )
    return True


def _of_sites_alone(config: Config, trained: Config) -> Config:
    """Where ``sites`` names other rasters, those alone are meant: not the run's own."""
    if not config.sites or (config.dsm, config.chm) != (trained.dsm, trained.chm):
        return config
    return replace(config, dsm=(), chm=(), site_names=(), site_weights=())


def _stream_to_score(config: Config, trained: Config, own: bool) -> Literal["auto", "always", "never"]:
    """How to read what is scored: the run's own data as it was read, other data as fits."""
    if own:
        return "always" if access.is_streamed(trained) else "never"
    return "auto" if config.stream == trained.stream else config.stream


def _without_what_else_trained(config: Config, trained: Config) -> Config:
    """Where other rasters are named, those alone are meant: not what trained beside the run's own."""
    if (config.dsm, config.chm) == (trained.dsm, trained.chm):
        return config
    chm_only = () if config.chm_only == trained.chm_only else config.chm_only
    share = 0.0 if config.virtual_share == trained.virtual_share else config.virtual_share
    names = () if config.site_names == trained.site_names else config.site_names
    return replace(config, chm_only=chm_only, virtual_share=share, site_weights=(), site_names=names)


def _with_absolute_paths(config: Config) -> Config:
    """So that the run folder can be used from anywhere; what ``sites`` names is written out."""
    config = with_pairs(config)
    names = ("dsm", "chm", "chm_only")
    return replace(config, **{n: [str(Path(path).resolve()) for path in getattr(config, n)] for n in names})


def _describe(sites: access.Grounds, source: Any, config: Config, model: nnx.Module) -> str:
    counted = [s.valid.sum() if isinstance(s, Site) else s.shape[0] * s.shape[1] for s in sites]
    area = sum(n * s.grid.resolution**2 for n, s in zip(counted, sites, strict=True)) / 1e4
    names = ", ".join(site.name for site in sites[:6]) + (", ..." if len(sites) > 6 else "")
    steps = source.steps_per_epoch if isinstance(source, TileSampler) else len(source)
    return (
        f"{len(sites)} site(s), {area:.1f} ha, {sum(counted) / 1e6:.2f} million pixels: {names}\n"
        f"{len(source.places)} training tiles of {config.tile_size} px, "
        f"{steps} steps an epoch, {config.epochs} epochs\n"
        f"{config.model_name}, {parameter_count(model):,} parameters, on {_described_devices(config)}"
    )


def _described_devices(config: Config) -> str:
    devices, kind = Devices.of(config.devices, config.fsdp), jax.devices()[0].device_kind
    if devices.count == 1:
        return kind
    among = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{devices.count} x {kind}{among}: {config.batch_size // devices.count} samples a step each"
