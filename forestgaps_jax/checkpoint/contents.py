"""What a checkpoint holds: arrays in Orbax's files, and a record in JSON of what these files are."""

import hashlib
import json
import zlib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.state import TrainState

FORMAT = 1
"""Of what is written here; raise it when an older version could no longer read it."""

RECORD = "record.json"
"""Name of the record. A folder without it is no checkpoint."""

_VERSIONS = ("forestgaps-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are not what was saved."""


def arrays_of(state: TrainState) -> dict[str, Any]:
    """The parts of a state that hold arrays, by name; a random key as the integers that it is made of."""
    parts = {name: part for name, part in vars(state).items() if name != "apply"}
    parts["rng"] = jax.random.key_data(state.rng)
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def state_of(arrays: dict[str, Any], like: TrainState) -> TrainState:
    """A state of the same structure with these arrays, free to go to any device."""
    parts = jax.tree.map(jnp.array, arrays)
    parts["rng"] = jax.random.wrap_key_data(parts["rng"], impl=jax.random.key_impl(like.rng))
    return replace(like, **parts)


def host(tree: Any) -> Any:
    """Copies of the arrays on the host, which no later step can take away; waits for the device."""
    return jax.tree.map(np.array, jax.device_get(tree))


def leaves_of(tree: Any) -> dict[str, str]:
    """Types and shapes of the leaves of a tree by their path, such as ``params/down/0/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def versions() -> dict[str, str]:
    """Of the libraries whose change may change what a training comes to, by name."""

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:  # run from its sources
            return "not installed"

    return {name: of(name) for name in _VERSIONS}


def former(path: Path) -> Path:
    """Where a checkpoint is while another takes its place."""
    return path.with_name(f"{path.name}.old")


def as_json(info: Any) -> Any:
    """What is to be saved as plain JSON; numbers and arrays of NumPy become those of Python.

    Raises:
        TypeError: what cannot be.
    """

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"{value!r} cannot be saved in a checkpoint: must be JSON")

    return json.loads(json.dumps(info, default=plain))


def write_record(
    folder: Path, step: int, leaves: dict[str, str], info: dict[str, Any], score: float | None
) -> None:
    """Write the record of a folder: what it holds, and size and checksum of each of its files."""
    record = {
        "step": step,
        "format": FORMAT,
        "versions": versions(),
        "score": score,
        "leaves": leaves,
        "files": _files(folder),
        "info": info,
    }
    (folder / RECORD).write_text(json.dumps({**record, "digest": _digest(record)}), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint.

    Raises:
        DamagedCheckpoint: it is missing, or is not what was written.
        ValueError: a newer version of the library wrote it.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        digest = record.pop("digest")
    except OSError as error:
        raise DamagedCheckpoint(f"{folder}/{RECORD} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        digest = record = None
    if record is None or digest != _digest(record):
        raise DamagedCheckpoint(f"{folder}/{RECORD} is not what was written")
    if record["format"] > FORMAT:
        written = record["versions"]["forestgaps-jax"]
        raise ValueError(
            f"{folder} has format {record['format']}, of forestgaps-jax {written}, and this one reads up to "
            f"{FORMAT}: pip install --upgrade forestgaps-jax"
        )
    return record


def check_files(folder: Path, record: dict[str, Any]) -> None:
    """See that every file is what was written, before anything else reads it.

    Raises:
        DamagedCheckpoint: names the first that is missing, cut off, changed or not of this checkpoint.
    """
    try:
        there, written = _files(folder), record["files"]
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename} cannot be read: {error.strerror}") from None
    for name in sorted(written.keys() | there.keys()):
        if name not in there:
            raise DamagedCheckpoint(f"{folder}/{name} is missing")
        if name not in written:
            raise DamagedCheckpoint(f"{folder}/{name} is not of this checkpoint")
        (size, checksum), (size_now, checksum_now) = written[name], there[name]
        if size != size_now:
            raise DamagedCheckpoint(f"{folder}/{name} has {size_now} of {size} bytes")
        if checksum != checksum_now:
            raise DamagedCheckpoint(f"{folder}/{name} is not what was written")


def _files(folder: Path) -> dict[str, list[int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path)] for path in files}


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _digest(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
