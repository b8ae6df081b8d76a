"""A training whose loss is infinite or NaN step after step: what to tell, and what to keep."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax import checkpoint
from forestgaps_jax.data.cut_tiles import CutTiles
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.loss import Loss
from forestgaps_jax.parallel import done_by_main
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import StepLogs
from forestgaps_jax.types import Batch, Sampler

_MOST_TILES = 8
"""Tiles that an error names."""


class DivergenceError(FloatingPointError):
    """The loss or a gradient was infinite or NaN in too many steps in a row.

    Attributes:
        folder: with the batch and the state before it, for ``forestgaps-jax replay``; None where none was
            written.
    """

    def __init__(self, message: str, folder: Path | None):
        super().__init__(message)
        self.folder = folder


def divergence(
    run_folder: Path | None,
    state: TrainState,
    step: int,
    steps_per_epoch: int,
    source: Batch | Sampler,
    logs: StepLogs,
    loss: Loss,
) -> DivergenceError:
    """The error of a training that has diverged; its batch is written to ``run_folder/diverged_step_N``.

    Args:
        run_folder: None to write nothing.
        state: of now; neither a skipped step nor any after it has changed its parameters.
        step: the latest of the skipped ones, counted from 0.
        steps_per_epoch: of the training.
        source: what that step has read.
        logs: of that step.
        loss: of the training, whose threshold weights are kept.
    """
    batch = source.sample(jnp.int32(step)) if isinstance(source, Sampler) else source
    told = {
        "step": step,
        "steps_per_epoch": steps_per_epoch,
        "skipped_in_a_row": int(logs.skipped_in_a_row),
        "loss": float(logs.loss),
        "grad_norm": float(logs.grad_norm),
        "lr": float(logs.lr),
        "threshold_weights": dict(getattr(loss, "table", {})),
        "tiles": source.describe(step) if isinstance(source, TileSampler | CutTiles) else [],
    }
    folder = None if run_folder is None else run_folder / f"diverged_step_{step}"
    if folder is not None:
        try:
            _write(folder, replace(state, step=jnp.int32(step)), batch, told)
        except OSError as error:
            logging.getLogger(__name__).error("the batch could not be written: %s", error)
            folder = None
    return DivergenceError(_message(told, batch, folder), folder)


def read_batch(folder: Path) -> Batch:
    """The batch that a diverged training has left.

    Raises:
        FileNotFoundError: there is none.
    """
    if not (folder / "batch.npz").is_file():
        raise FileNotFoundError(f"there is no batch.npz in {folder}")
    with np.load(folder / "batch.npz", allow_pickle=False) as arrays:
        return Batch(**{name: jnp.asarray(arrays[name]) for name in arrays.files})


def _write(folder: Path, state: TrainState, batch: Batch, told: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {name: part for name, part in vars(batch).items() if part is not None}
    arrays = jax.device_get(arrays)

    def write_batch() -> None:
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / "batch.npz", **arrays)
        (folder / "report.json").write_text(json.dumps(told, indent=1), encoding="utf-8")

    done_by_main(write_batch)
    checkpoint.save_one(folder / "state", state, told)


def _message(told: dict[str, Any], batch: Batch, folder: Path | None) -> str:
    named, count = told["tiles"][:_MOST_TILES], len(told["tiles"])
    more = f" and {count - _MOST_TILES} more" if count > _MOST_TILES else ""
    tiles = f"{', '.join(named)}{more}" if named else f"a batch of {batch.dsm.shape[0]} given tiles"
    look = "" if folder is None else f" Look at it: forestgaps-jax replay {folder}."
    return (
        f"training has diverged: loss or gradient was infinite or NaN in {told['skipped_in_a_row']} steps in "
        f"a row, up to step {told['step']} (counted from 0): loss {told['loss']:.4g}, gradient norm "
        f"{told['grad_norm']:.4g}, learning rate {told['lr']:.4g}; tiles: {tiles}. The skipped steps have "
        f"changed no parameter.{look} Lower learning_rate, set use_gradient_clipping, or look for heights "
        "that are none"
    )
