"""Reading checkpoints: what was saved, or an error or warning that names what is wrong."""

import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from forestgaps_jax.checkpoint.contents import (
    RECORD,
    DamagedCheckpoint,
    arrays_of,
    check_files,
    former,
    leaves_of,
    read_record,
    state_of,
)
from forestgaps_jax.parallel import own_share
from forestgaps_jax.state import TrainState


class Checkpoint(NamedTuple):
    """What `restore` gives back.

    Attributes:
        state: the state.
        info: the JSON saved beside it.
        progress: further arrays, as NumPy's; empty where none were saved.
        damaged: steps of later or better checkpoints that could not be read.
        versions: of the libraries that wrote it, by name.
        differing: settings that are others than those it was saved with, by name, in words.
    """

    state: TrainState
    info: dict[str, Any]
    progress: dict[str, Any]
    damaged: tuple[int, ...] = ()
    versions: dict[str, str] = {}  # noqa: RUF012 - read only
    differing: dict[str, str] = {}  # noqa: RUF012 - read only


def latest(folder: str | Path) -> int | None:
    """Step of the newest checkpoint in a folder whose record can be read; None where there is none."""
    return max(recorded_scores(folder), default=None)


def best(folder: str | Path) -> int | None:
    """Step of the best checkpoint in a folder; the newest where none has a score."""
    order = _order(recorded_scores(folder), "best")
    return order[0] if order else None


def restore(
    folder: str | Path,
    state: TrainState,
    step: int | Literal["latest", "best"] = "latest",
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read a checkpoint into a state of the same structure.

    Where the newest (or best) is damaged, one warning names it, and the one before (or next best) is read.

    Args:
        folder: where checkpoints lie.
        state: gives the structure, shapes and ``apply``; its values are not used.
        step: which one.
        settings: of a training that goes on, to be compared with those in ``info["config"]``.

    Raises:
        FileNotFoundError: there is no such checkpoint; says which there are.
        DamagedCheckpoint: the one that was asked for by its step, or all there are, cannot be read.
        ValueError: the checkpoint is of another model, optimizer or, where settings are given, of other
            thresholds; says which leaf and which settings differ. Or it is of a newer version of the library.
    """
    there = sorted(_steps(folder))
    if not there or (isinstance(step, int) and step not in there):
        named = f" {step}" if isinstance(step, int) else ""
        raise FileNotFoundError(f"no checkpoint{named} in {folder}; there are: {there}")
    if isinstance(step, int):
        return _read(Path(folder).absolute() / str(step), state, settings)
    known = recorded_scores(folder)
    # Those whose record is damaged come first where they are the newest: they are told, not passed over.
    order = there[::-1] if step == "latest" else _order(known, "best") + sorted(set(there) - set(known))[::-1]
    return _first_whole(Path(folder).absolute(), state, order, settings)


def restore_one(path: str | Path, state: TrainState) -> Checkpoint:
    """Read what `save_one` wrote, into a state of the same structure.

    Raises:
        FileNotFoundError: there is no checkpoint at the path.
        DamagedCheckpoint: its files are not what was written.
        ValueError: it is of another model or optimizer, or of a newer version of the library.
    """
    folder = Path(path).absolute()
    recover(folder)
    if not (folder / RECORD).exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    return _read(folder, state)


def set_aside(folder: str | Path, steps: Iterable[int]) -> None:
    """Rename damaged checkpoints to ``<step>.damaged``, so that a training can pass their steps again."""
    for step in steps:
        path = Path(folder) / str(step)
        names = (path.with_name(f"{step}.damaged{n or ''}") for n in range(1000))
        path.rename(next(name for name in names if not name.exists()))


def damaged_ones(folder: str | Path) -> list[int]:
    """Steps of the checkpoints whose files are not what was written."""
    damaged = []
    for step in _steps(folder):
        path = Path(folder) / str(step)
        try:
            check_files(path, read_record(path))
        except DamagedCheckpoint as error:
            logging.getLogger(__name__).warning("a damaged checkpoint is set aside: %s", error)
            damaged.append(step)
    return damaged


def recover(path: Path) -> None:
    """Put a checkpoint back that was to be replaced when the process was killed."""
    if not path.exists() and former(path).exists():
        with suppress(OSError):  # another process may be at it
            former(path).rename(path)


def recorded_scores(folder: str | Path) -> dict[int, float | None]:
    """Scores by step, of the checkpoints whose record can be read."""
    scores = {}
    for step in _steps(folder):
        try:
            scores[step] = read_record(Path(folder) / str(step))["score"]
        except DamagedCheckpoint:
            continue
    return scores


def _steps(folder: str | Path) -> list[int]:
    """Steps of all checkpoints, whole or not; what is still being written has another name."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    for old in folder.glob("*.old"):
        recover(old.with_suffix(""))
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]


def _order(scores: dict[int, float | None], which: Literal["latest", "best"]) -> list[int]:
    scored = {step: score for step, score in scores.items() if score is not None}
    by_score = sorted(scored, key=lambda step: (scored[step], step), reverse=True)
    return by_score + sorted(scores.keys() - scored.keys(), reverse=True)


def _first_whole(
    folder: Path, state: TrainState, order: list[int], settings: Mapping[str, Any] | None
) -> Checkpoint:
    damaged: list[int] = []
    for step, following in zip(order, [*order[1:], None], strict=True):
        try:
            return _read(folder / str(step), state, settings)._replace(damaged=tuple(damaged))
        except DamagedCheckpoint as error:
            damaged.append(step)
            if following is not None:
                logging.getLogger(__name__).warning(
                    "a damaged checkpoint is passed over: %s; %d is taken", error, following
                )
    raise DamagedCheckpoint(
        f"no checkpoint in {folder} can be read: {damaged} are all damaged; move it away to begin anew"
    )


def _read(path: Path, state: TrainState, settings: Mapping[str, Any] | None = None) -> Checkpoint:
    record = read_record(path)
    if path.name.isdigit() and record["step"] != int(path.name):
        raise DamagedCheckpoint(f"{path} holds step {record['step']}")
    wanted = jax.eval_shape(arrays_of, state)
    differing = _differing_settings(record["info"].get("config", {}), settings)
    _refuse_another(path, record["leaves"], wanted, differing)
    check_files(path, record)
    targets: dict[str, Any] = {"state": jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)}
    if (path / "progress").is_dir():
        targets["progress"] = None
    # In a thread of its own no signal finds Orbax at work, which would take it for a broken checkpoint.
    with ThreadPoolExecutor(1) as reader:
        trees: dict[str, Any] = reader.submit(_load, path, targets).result()
    restored = state_of(trees["state"], state)
    return Checkpoint(
        restored,
        record["info"],
        trees.get("progress", {}),
        versions=record["versions"],
        differing=differing,
    )


def _load(path: Path, targets: dict[str, Any]) -> dict[str, Any]:
    """The whole arrays, for this process alone, whatever others do."""
    from orbax.checkpoint import v1 as ocp

    context, own = ocp.Context(), own_share()[0]
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
    with context:
        return ocp.load_checkpointables(str(path), targets)


def _refuse_another(
    path: Path, saved: dict[str, str], wanted: dict[str, Any], differing: dict[str, str]
) -> None:
    difference = _difference(saved, leaves_of(wanted))
    if difference:
        settings = f"; settings that differ: {', '.join(differing.values())}" if differing else ""
        raise ValueError(f"checkpoint {path} is of another model or optimizer: {difference}{settings}")
    if "thresholds" in differing:
        raise ValueError(f"checkpoint {path} is of other thresholds: {differing['thresholds']}")


def _differing_settings(saved: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Settings that differ, by name, in words."""
    here = {} if settings is None else json.loads(json.dumps(dict(settings)))
    return {
        name: f"{name} = {saved[name]} in the checkpoint, {here[name]} here"
        for name in sorted(saved.keys() & here.keys())
        if saved[name] != here[name]
    }


def _difference(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """The first leaf that differs, in words; empty where none does."""
    for leaf in sorted(saved.keys() | wanted.keys()):
        if leaf not in saved or leaf not in wanted:
            return f"{leaf} is only in the {'model' if leaf in wanted else 'checkpoint'}"
        if saved[leaf] != wanted[leaf]:
            return f"{leaf} is {saved[leaf]} in the checkpoint, {wanted[leaf]} in the model"
    return ""
