"""Tiles of a stream that could not be read: which, of which files, and why."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from forestgaps_jax.parallel import said_by_each


class Unread:
    """The tiles of a pass that could not be read; each counts once, however often and by whom it was tried.

    Args:
        state: as `state` gave it; None for nothing.
    """

    def __init__(self, state: Mapping[str, Any] | None = None):
        self._tiles: dict[str, set[int]] = {}
        self._why: dict[str, str] = {}
        self._add(state or {})

    def __len__(self) -> int:
        """Tiles."""
        return len(set().union(*self._tiles.values()))

    def add(self, number: int, path: str, why: str) -> None:
        """Note a tile, by its number among all, and the file that could not be read."""
        self._tiles.setdefault(path, set()).add(number)
        self._why.setdefault(path, why)

    def by_file(self) -> dict[str, int]:
        """How many tiles of each file."""
        return {path: len(tiles) for path, tiles in self._tiles.items()}

    def state(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {path: {"why": self._why[path], "tiles": sorted(self._tiles[path])} for path in self._tiles}

    def of_all(self) -> "Unread":
        """What any of the processes that train together could not read; all ask, in their main threads."""
        whole = Unread()
        for words in said_by_each(json.dumps(self.state())):
            whole._add(json.loads(words))
        return whole

    def warn(self, tiles: int) -> None:
        """Tell of them, if there are any, in one line; ``tiles`` is how many there are in all."""
        if self._tiles:
            files = [f"{len(numbers)} of {self._why[path]}" for path, numbers in self._tiles.items()]
            logging.getLogger(__name__).warning(
                "%d of %d tiles were skipped in this epoch, as they could not be read: %s",
                len(self),
                tiles,
                "; ".join(files),
            )

    def _add(self, state: Mapping[str, Any]) -> None:
        for path, entry in state.items():
            self._tiles.setdefault(path, set()).update(entry["tiles"])
            self._why.setdefault(path, entry["why"])
