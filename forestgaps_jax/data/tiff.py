"""What GDAL passes over in a TIFF: directories that are cut off, a broken CRS, blocks that are not there."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Bool

_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_SIZES = {kind: int(number[1]) for kind, number in _NUMBERS.items()} | {2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8}
"""Bytes of a value of each type."""

_STRIP_HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_OFFSETS, _LENGTHS = (324, 273), (325, 279)  # of tiles, of strips
_GEO_KEYS, _MODEL, _GEOGRAPHIC, _PROJECTED = 34735, 1024, 2048, 3072
_WANTED = {_STRIP_HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, *_OFFSETS, *_LENGTHS, _GEO_KEYS}

Tags = dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Blocks that a file leaves out of its image; GDAL reads them as no-data, or as 0 where none is declared.

    Attributes:
        rows: of pixels in a block.
        columns: of pixels in a block.
        across: blocks side by side.
        there: of each block, row by row, whether the file has it; it has none beyond these.
    """

    rows: int
    columns: int
    across: int
    there: Bool[np.ndarray, " blocks"]

    def pixels(self, first: int, last: int, width: int) -> Bool[np.ndarray, "rows width"]:
        """Which are left out, of the image's rows from ``first`` to ``last`` (exclusive)."""
        lines, columns = np.arange(first, last) // self.rows, np.arange(width) // self.columns
        blocks = np.arange(lines[0] * self.across, (lines[-1] + 1) * self.across)
        out = blocks >= len(self.there)
        out[~out] = ~self.there[blocks[~out]]
        return out.reshape(-1, self.across)[lines - lines[0]][:, columns]


def read_tags(path: Path) -> Tags:
    """The numbers of the tags of a TIFF's first image that are wanted here.

    Raises:
        EOFError: a directory of any image, or what it points to beside blocks, is beyond the file's end.
    """
    with path.open("rb") as file:
        return _Reader(file, path.stat().st_size).directories()[0]


def names_crs(tags: Tags) -> bool:
    """Whether a GeoTIFF says that its coordinates are projected or geographic."""
    keys = tags.get(_GEO_KEYS, np.zeros(0, np.uint16))[4:].tolist()
    values = dict(zip(keys[::4], keys[3::4], strict=False))
    return values.get(_MODEL) in (1, 2) or bool({_GEOGRAPHIC, _PROJECTED} & values.keys())


def blocks_left_out(tags: Tags, shape: tuple[int, int]) -> LeftOut | None:
    """What is left out of an image of this shape; None if nothing."""
    offsets, lengths = (next((tags[tag] for tag in two if tag in tags), None) for two in (_OFFSETS, _LENGTHS))
    there = np.zeros(0, bool) if offsets is None else offsets > 0
    if lengths is not None and len(there) > 1:  # the length of a single block GDAL finds out
        there[: len(lengths)] &= lengths[: len(there)] > 0
        there[len(lengths) :] = False
    tiled = {_TILE_HEIGHT, _TILE_WIDTH} <= tags.keys()
    rows = _first(tags, _TILE_HEIGHT if tiled else _STRIP_HEIGHT, shape[0])
    columns = _first(tags, _TILE_WIDTH, shape[1]) if tiled else shape[1]
    down, across = -(-shape[0] // rows), -(-shape[1] // columns)
    if len(there) >= down * across and there[: down * across].all():
        return None
    return LeftOut(rows, columns, across, there)


def _first(tags: Tags, tag: int, default: int) -> int:
    return max(int(tags[tag][0]), 1) if tag in tags and tags[tag].size else default


class _Reader:
    """The directories of a TIFF."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self._order = "<" if self._bytes(0, 2) == b"II" else ">"
        self._big = self._number(2, 2) == 43
        self._wide = 8 if self._big else 4  # bytes of an offset

    def directories(self) -> list[Tags]:
        """Of the image first, then of its masks and overviews."""
        found, seen, place = [], set(), self._number(self._wide, self._wide)
        while place and place not in seen:
            seen.add(place)
            tags, place = self._directory(place)
            found.append(tags)
        return found

    def _directory(self, place: int) -> tuple[Tags, int]:
        """Its tags, and where the next directory is."""
        first, length = (place + 8, 20) if self._big else (place + 2, 12)
        end, tags = first + length * self._number(place, first - place), {}
        self._check(end)
        for entry in range(first, end, length):
            tag, kind = self._number(entry, 2), self._number(entry + 2, 2)
            if kind in _SIZES:  # others are to be ignored
                start, size = self._values(entry + 4, _SIZES[kind])
                if kind in _NUMBERS and tag in _WANTED:
                    values = np.frombuffer(self._bytes(start, size), self._order + _NUMBERS[kind])
                    tags.setdefault(tag, values)
        return tags, self._number(end, self._wide)

    def _values(self, place: int, each: int) -> tuple[int, int]:
        """Where the values are whose number is told at this place, and how many bytes they have."""
        size, start = each * self._number(place, self._wide), place + self._wide
        if size > self._wide:
            start = self._number(start, self._wide)
        self._check(start + size)
        return start, size

    def _number(self, place: int, size: int) -> int:
        return int.from_bytes(self._bytes(place, size), "little" if self._order == "<" else "big")

    def _bytes(self, place: int, size: int) -> bytes:
        self._check(place + size)
        self._file.seek(place)
        return self._file.read(size)

    def _check(self, end: int) -> None:
        if end > self._size:
            raise EOFError(f"it has {self._size} bytes, and names what is at byte {end}")
