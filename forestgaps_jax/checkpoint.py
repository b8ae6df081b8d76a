"""Checkpoints of a training: the one file that knows Orbax.

A checkpoint holds arrays and JSON; opening one runs no code.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from forestgaps_jax.state import TrainState

_KEEP = ocp.training.preservation_policies
_SCORE = "score"
_MARK = "_CHECKPOINT_METADATA"
"""File by which a folder is known as a checkpoint; Orbax's own test calls every folder one."""


class Checkpoint(NamedTuple):
    """What `restore` gives back."""

    state: TrainState
    info: dict[str, Any]


class Checkpointer:
    """Writes checkpoints of one run in the background, and keeps the newest and the best ones.

    Use it as a context manager: leaving it waits for the last save.

    Args:
        folder: where checkpoints lie, one subfolder a step.
        keep_best: how many of the best to keep, beside the newest.
    """

    def __init__(self, folder: str | Path, keep_best: int = 1):
        best = _KEEP.BestN(get_metric_fn=_score, n=keep_best, keep_checkpoints_without_metrics=False)
        self._manager = _open(folder, _KEEP.AnyPreservationPolicy([_KEEP.LatestN(1), best]))

    def save(self, state: TrainState, info: dict[str, Any], score: float | None = None) -> None:
        """Copy the state to the host and write it in the background.

        Args:
            state: what to save.
            info: JSON to save beside it.
            score: how good it is, the higher the better; None or NaN never makes it the best.
        """
        metrics: Any = None if score is None or math.isnan(score) else {_SCORE: score}
        self._manager.save_async(
            int(state.step), _arrays(state), metrics=metrics, custom_metadata=info, overwrite=True
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save, and let go of the folder."""
        self._manager.close()


def latest(folder: str | Path) -> int | None:
    """Step of the newest checkpoint in a folder; None where there is none."""
    return max((step for step, _ in _scores(folder)), default=None)


def best(folder: str | Path) -> int | None:
    """Step of the best checkpoint in a folder; the newest where none has a score."""
    scored = [(score, step) for step, score in _scores(folder) if score is not None]
    return max(scored)[1] if scored else latest(folder)


def restore(folder: str | Path, state: TrainState, step: int | None = None) -> Checkpoint:
    """Read a checkpoint into a state of the same structure.

    Args:
        folder: where checkpoints lie.
        state: gives the structure, shapes and ``apply``; its values are not used.
        step: which one; None for the newest.

    Raises:
        FileNotFoundError: there is no such checkpoint; says which there are.
        ValueError: the checkpoint is of another model or optimizer.
    """
    steps = [s for s, _ in _scores(folder)]
    if not steps or (step is not None and step not in steps):
        raise FileNotFoundError(
            f"no checkpoint{'' if step is None else f' {step}'} in {folder}; there are: {steps}"
        )
    step = max(steps) if step is None else step
    with _open(folder, _KEEP.PreserveAll()) as manager:
        metadata = manager.metadata(step)
        _refuse_another(f"checkpoint {step} in {folder}", metadata.metadata, state)
        arrays = manager.load(step, _arrays(state))
    return _restored(state, arrays, metadata)


def save_one(path: str | Path, state: TrainState, info: dict[str, Any]) -> None:
    """Write one checkpoint as the folder ``path``, over one that may be there; waits for the disk.

    Args:
        path: a folder that is, or will be, this checkpoint.
        state: what to save.
        info: JSON to save beside it.

    Raises:
        FileExistsError: at the path lies something that is no checkpoint; it is left alone.
    """
    folder = Path(path).absolute()
    if folder.exists() and not (folder / _MARK).exists():
        raise FileExistsError(f"{path} exists and is no checkpoint: give another path")
    ocp.save(str(folder), _arrays(state), custom_metadata=info, overwrite=True)


def restore_one(path: str | Path, state: TrainState) -> Checkpoint:
    """Read what `save_one` wrote, into a state of the same structure.

    Raises:
        FileNotFoundError: there is no checkpoint at the path.
        ValueError: it is of another model or optimizer.
    """
    folder = Path(path).absolute()
    if not (folder / _MARK).exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    metadata = ocp.metadata(str(folder))
    _refuse_another(str(path), metadata.metadata, state)
    arrays: Any = ocp.load(str(folder), _arrays(state))
    return _restored(state, arrays, metadata)


def _restored(state: TrainState, arrays: Any, metadata: Any) -> Checkpoint:
    return Checkpoint(
        replace(state, **jax.tree.map(_uncommitted, arrays)), dict(metadata.custom_metadata or {})
    )


def _uncommitted(leaf: jax.Array) -> jax.Array:
    """The array, free again: Orbax ties it to its device, and steps would compile anew for that."""
    if len(leaf.sharding.device_set) > 1:
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jnp.array(np.asarray(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jnp.array(np.asarray(leaf))


def _refuse_another(name: str, saved: Any, state: TrainState) -> None:
    difference = _difference(_shapes(saved), _shapes(_arrays(state)))
    if difference:
        raise ValueError(f"{name} is of another model or optimizer: {difference}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves
    }


def _difference(saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str:
    """The first leaf that differs, in words; empty where none does."""
    for leaf in sorted(saved.keys() | wanted.keys()):
        if leaf not in saved or leaf not in wanted:
            return f"{leaf} is only in the {'model' if leaf in wanted else 'checkpoint'}"
        # A random key is saved as the integers that it is made of.
        if leaf != "rng" and saved[leaf] != wanted[leaf]:
            return f"{leaf} has shape {saved[leaf]} in the checkpoint, {wanted[leaf]} in the model"
    return ""


def _arrays(state: TrainState) -> dict[str, Any]:
    parts = {name: part for name, part in vars(state).items() if name != "apply"}
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def _open(folder: str | Path, preservation_policy: Any) -> ocp.training.Checkpointer:
    # Both policies are always given: Orbax's own default saves when it likes.
    save_decision_policy: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    return ocp.training.Checkpointer(
        str(Path(folder).absolute()),
        save_decision_policy=save_decision_policy,
        preservation_policy=preservation_policy,
    )


def _scores(folder: str | Path) -> list[tuple[int, float | None]]:
    if not Path(folder).is_dir():
        return []
    with _open(folder, _KEEP.PreserveAll()) as manager:
        return [(c.step, _score(c.metrics) if c.metrics else None) for c in manager.checkpoints]


def _score(metrics: Any) -> float:
    return metrics[_SCORE]
