"""A second look at the step in which a training has diverged."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from forestgaps_jax import checkpoint
from forestgaps_jax.compilation_cache import use_cache
from forestgaps_jax.config import Config
from forestgaps_jax.divergence import read_batch
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.recipe import make_recipe
from forestgaps_jax.state import create_state
from forestgaps_jax.steps import gradients
from forestgaps_jax.types import Batch

_MOST_LEAVES = 12
"""Parameters that the report lists."""


@dataclass(frozen=True)
class Replay:
    """What a step has read, and what came of it.

    Attributes:
        folder: of the batch.
        report: what the training has told of the step: step, loss, grad_norm, lr, tiles.
        batch: what the step read, on the host.
        loss: of the step, taken once more.
        output: what the network gave, ``[samples, height, width, 1]``.
        gradients: by the path of each parameter.
        params: by their path.
    """

    folder: Path
    report: dict[str, Any]
    batch: Batch
    loss: float
    output: np.ndarray
    gradients: Mapping[str, np.ndarray]
    params: Mapping[str, np.ndarray]


def replay(folder: str | Path) -> Replay:
    """Take the step of a diverged training once more, with the configured network and loss.

    Args:
        folder: a run folder, whose latest ``diverged_step_N`` is looked at, or such a folder.

    Raises:
        FileNotFoundError: no training has diverged there.
        ValueError: the settings are of another network.
    """
    place = _diverged(Path(folder))
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    config = Config.from_toml(place.parent / "config.toml")
    use_cache(config.compilation_cache_dir)
    state = create_state(create_model_from_config(config), config)
    state = checkpoint.restore_one(place / "state", state).state
    weights = {float(height): weight for height, weight in report["threshold_weights"].items()}
    recipe = make_recipe(config, report["steps_per_epoch"], threshold_weights=weights or None)
    batch = read_batch(place)
    (loss, (output, _)), grads = jax.jit(lambda state, batch: gradients(recipe, state, batch))(state, batch)
    grads, params = (_by_path(tree) for tree in (grads, state.trained))
    return Replay(place, report, jax.device_get(batch), float(loss), np.asarray(output), grads, params)


def format_replay(seen: Replay) -> str:
    """What was seen, to be read."""
    report = seen.report
    lines = [
        f"{seen.folder}: step {report['step']}, learning rate {report['lr']:.4g}, "
        f"{report['skipped_in_a_row']} skipped in a row",
        f"then  loss {report['loss']:.6g}, gradient norm {report['grad_norm']:.6g}",
        f"now   loss {seen.loss:.6g}, gradient norm {_norm(seen.gradients):.6g}",
        "",
        f"output  {_range(seen.output)}",
        "",
        *_tile_lines(seen),
        "",
        f"{'parameter':50} {'largest':>10} {'gradient':>10}  not finite",
        *_parameter_lines(seen),
    ]
    return "\n".join(lines)


def _diverged(folder: Path) -> Path:
    if (folder / "batch.npz").is_file():
        return folder
    found = sorted(folder.glob("diverged_step_*"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no training has diverged in {folder}: there is no diverged_step_N")
    return found[-1]


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _tile_lines(seen: Replay) -> list[str]:
    batch = seen.batch
    valid = np.asarray(batch.counted)
    names = seen.report["tiles"] + ["filled up"] * batch.dsm.shape[0] if seen.report["tiles"] else []
    lines = ["tile  threshold  valid   gaps  surface (m)"]
    for number, threshold in enumerate(np.asarray(batch.threshold)):
        counted, surface = valid[number], np.asarray(batch.dsm[number])
        gaps = np.mean(batch.mask[number][counted[..., 0]]) if counted.any() else np.nan
        height = ", ".join(f"{value:g}" for value in np.atleast_1d(threshold))
        lines.append(
            f"{number:4}  {height:>7} m  {counted.mean():5.1%}  {gaps:5.1%}  "
            f"{_range(surface[counted])}{'  ' + names[number] if names else ''}"
        )
    return lines


def _parameter_lines(seen: Replay) -> list[str]:
    """Those whose gradients are not finite first, then the largest gradients."""

    def worst(name: str) -> tuple[int, float]:
        gradient = seen.gradients[name]
        return -int(np.sum(~np.isfinite(gradient))), -float(np.nanmax(np.abs(gradient), initial=0.0))

    lines = []
    for name in sorted(seen.gradients, key=worst)[:_MOST_LEAVES]:
        weight, gradient = seen.params[name], seen.gradients[name]
        largest = (np.nanmax(np.abs(values), initial=0.0) for values in (weight, gradient))
        wrong = int(np.sum(~np.isfinite(gradient)))
        lines.append(
            f"{name:50} {' '.join(f'{value:10.3g}' for value in largest)}  {wrong} of {gradient.size}"
        )
    left = len(seen.gradients) - len(lines)
    return [*lines, f"... and {left} more"] if left > 0 else lines


def _norm(gradients: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in gradients.values())))


def _range(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    wrong = f", {values.size - finite.size} of {values.size} not finite" if finite.size < values.size else ""
    return f"{finite.min():.6g} to {finite.max():.6g}{wrong}" if finite.size else f"nothing finite{wrong}"
