"""The folder that a run writes to: made, found again, and held by one process at a time."""

import errno
import glob
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from forestgaps_jax.config import Config
from forestgaps_jax.parallel import done_by_main, refuse_unshared, said_by_main

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

OF_NO_CONSEQUENCE = {
    "name",
    "runs_dir",
    "use_progress_bar",
    "compilation_cache_dir",
    "devices",
    "fsdp",
    "memory_share",
    "shard_rasters",
}
"""Settings in which two runs may differ and still be the same."""

_held: set[Path] = set()
"""Folders that this process holds."""


def new_run_folder(config: Config) -> Path:
    """Make ``runs_dir/name``, or the first of ``name-2``, ``name-3``, ... that is free, with its settings.

    So no run ever mixes with, or writes over, another; not even one that starts at the same moment. The
    folder appears with its ``config.toml`` in it, so that a run that is killed at once is found again. Of
    several processes the main one makes it.
    """
    return Path(said_by_main(lambda: str(_new_run_folder(config))))


def _new_run_folder(config: Config) -> Path:
    runs = Path(config.runs_dir)
    runs.mkdir(parents=True, exist_ok=True)
    for folder in _candidates(config):
        if folder.exists() and any(folder.iterdir()):
            continue
        new = runs / f".{folder.name}-{os.urandom(8).hex()}"
        new.mkdir()
        write_settings(config, new, folder.name)
        try:
            new.rename(folder)  # over nothing, or an empty folder
        except OSError as error:
            (new / "config.toml").unlink()
            new.rmdir()
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            continue
        return folder
    raise AssertionError("there is always a next number")


def find_run(config: Config) -> Path | None:
    """The latest run of this name with the same settings, which no other process is at; None without.

    That is the one of the highest number among ``runs_dir/name``, ``name-2``, ``name-3``, ... . Of several
    processes the main one looks.
    """
    found = said_by_main(lambda: str(_find_run(config) or ""))
    return Path(found) if found else None


def _find_run(config: Config) -> Path | None:
    numbered = re.compile(rf"{re.escape(config.name)}(?:-(\d+))?")
    there = [path for path in Path(config.runs_dir).glob(f"{glob.escape(config.name)}*") if path.is_dir()]
    named = [(int(match[1] or 1), path) for path in there if (match := numbered.fullmatch(path.name))]
    for _, folder in sorted(named, reverse=True):
        if differing_settings(config, folder):
            continue
        if not _is_held_elsewhere(folder):
            return folder
        logging.getLogger(__name__).warning("another process is training in %s: it is left alone", folder)
    return None


def differing_settings(config: Config, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Settings of a run folder that differ from these, as (there, here), by name.

    All of them where the folder has no settings that can be read.
    """
    here = config.to_dict()
    try:
        there = Config.from_toml(folder / "config.toml").to_dict()
    except (OSError, ValueError, TypeError):
        there = dict.fromkeys(here)
    return {
        name: (there[name], here[name])
        for name in here.keys() - OF_NO_CONSEQUENCE
        if there[name] != here[name]
    }


def write_settings(config: Config, folder: Path, name: str) -> None:
    """Write ``config.toml``, with the name that the run has on the disk."""
    replace(config, name=name, runs_dir=str(folder.parent)).to_toml(folder / "config.toml")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder against other processes; whoever is killed, with all that it forked, lets go of it.

    Of several processes that train together the main one does; all need to see the folder.

    Windows, and file systems without locks, hold nothing.

    Raises:
        BlockingIOError: another process is training in it.
        OSError: not all of the processes that train together see it.
    """
    with ExitStack() as stack:
        done_by_main(lambda: stack.enter_context(_locked(folder)))
        refuse_unshared(folder)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    key = folder.resolve()
    if fcntl is None or key in _held:
        yield
        return
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is training in {folder}: wait for it, or give this run another name"
            ) from None
        except OSError:  # a file system without locks
            pass
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def _is_held_elsewhere(folder: Path) -> bool:
    try:
        with _locked(folder):
            return False
    except OSError:  # or nothing can be written there
        return True


def _candidates(config: Config) -> Iterator[Path]:
    folder = Path(config.runs_dir) / config.name
    return chain([folder], (folder.with_name(f"{config.name}-{n}") for n in count(2)))
