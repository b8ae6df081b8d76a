"""What was compiled, kept on disk: the next process that needs it reads it instead of compiling it anew."""

import hashlib
import logging
import os
import platform
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

_MOST_BYTES = 1 << 30
"""Of all entries; those that were not read for longest go first."""

_DIRECTORY, _SHORTEST = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
_DEFAULT_SHORTEST = 1.0

_before: dict[str, float] = {}
"""By the folder that JAX caches in because of `use_cache`: the shortest compilation that JAX kept before."""

_refused: set[str] = set()
"""Folders that cannot be used, as was told."""


def use_cache(folder: str) -> None:
    """Let JAX keep what it compiles in a folder, and read it from there, from now on.

    A cache that JAX was given by others (``JAX_COMPILATION_CACHE_DIR``, ``jax.config``) stays. Where the
    folder cannot be written to, a warning is logged, once, and nothing is kept. Who can write to the folder
    can run code in the process that reads it.

    Args:
        folder: ``"auto"``: below the user's cache directory; empty: none, nor that of an earlier call.
    """
    current = jax.config.values[_DIRECTORY]
    if current is not None and current not in _before:
        return
    place = _place(folder)
    if place == current or (place is not None and not _prepare(place)):
        return
    if current is not None:
        _switch(None, _before.pop(current))
    if place is not None:
        shortest = _before[place] = jax.config.values[_SHORTEST]
        # Reading takes 2 ms: less than any compilation, and a training begins with a hundred small ones.
        _switch(place, 0.0 if shortest == _DEFAULT_SHORTEST else shortest)


def _switch(place: str | None, shortest: float) -> None:
    jax.config.update(_DIRECTORY, place)
    jax.config.update(_SHORTEST, shortest)
    reset_cache()  # JAX settles for a folder when it first uses it


def _place(folder: str) -> str | None:
    """The folder of this kind of machine; None for none."""
    if not folder:
        return None
    try:
        root = _user_folder() if folder == "auto" else Path(folder).expanduser()
    except RuntimeError:  # a user without a home
        root = Path(folder)
    return str(root.absolute() / _machine())


def _user_folder() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "forestgaps_jax"


@lru_cache(maxsize=1)
def _machine() -> str:
    """What makes compiled code crash or crawl elsewhere, as a home folder may be shared by many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line for line in lines if line.lower().startswith(("flags", "features")))
    digest = hashlib.sha256(next(named, platform.processor()).encode()).hexdigest()[:8]
    return f"jaxlib-{version('jaxlib')}-{sys.platform}-{platform.machine()}-{digest}"


def _prepare(place: str) -> bool:
    """Make a folder, and tidy it up; whether it can be used."""
    if place in _refused:
        return False
    try:
        Path(place).mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
        _tidy(Path(place))
    except OSError as error:
        _refused.add(place)
        logging.getLogger(__name__).warning(
            "what is compiled is not kept for later starts, see compilation_cache_dir: %s", error
        )
        return False
    return True


def _tidy(place: Path) -> None:
    """Take away what is cut off, and the oldest where it has become too much, also of other machines.

    A full disk or a kill cuts entries off; JAX would complain of them, and never replace them.
    """
    checked = place / ".checked"
    since = checked.stat().st_mtime if checked.exists() else 0.0
    checked.touch()
    entries = sorted(_entries(place.parent), reverse=True)
    size = 0
    for latest, length, entry in entries:
        size += length
        broken = entry.parent == place and latest >= since and not _is_whole(entry)
        if broken or size > _MOST_BYTES:
            entry.unlink(missing_ok=True)


def _entries(root: Path) -> Iterator[tuple[float, int, Path]]:
    """When it was last read or written, its bytes, and its path, of each entry."""
    for path in root.glob("jaxlib-*/*-cache"):
        with suppress(FileNotFoundError):  # another process tidies up too
            stat = path.stat()
            yield max(stat.st_atime, stat.st_mtime), stat.st_size, path


def _is_whole(entry: Path) -> bool:
    """Whether it can be unpacked; one that zlib has not packed only has to hold anything."""
    try:
        content = entry.read_bytes()
    except FileNotFoundError:
        return True
    if content[:1] != b"\x78":
        return bool(content)
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(content)
    except zlib.error:
        return False
    return unpacking.eof
