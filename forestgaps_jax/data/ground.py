"""Rectangles of ground in metres, and the pixels of a raster that they hold."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from forestgaps_jax.types import Grid

_SLACK = 1e-6  # of a pixel: coordinates of millions of metres carry rounding


@runtime_checkable
class Ground(Protocol):
    """What shows ground: a site in memory, or a pair of files."""

    @property
    def name(self) -> str:
        """How tables and errors call it."""
        ...

    @property
    def grid(self) -> Grid:
        """Where it lies."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...


class Rectangle(NamedTuple):
    """Edges in metres; y grows to the north."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def of(cls, site: Ground) -> "Rectangle":
        """The ground that a site shows."""
        (height, width), grid = site.shape, site.grid
        return cls(
            grid.left,
            grid.top - height * grid.resolution,
            grid.left + width * grid.resolution,
            grid.top,
        )

    @classmethod
    def around(cls, parts: Sequence["Rectangle"]) -> "Rectangle":
        """The smallest that holds all."""
        left, bottom, right, top = zip(*parts, strict=True)
        return cls(min(left), min(bottom), max(right), max(top))

    def overlaps(self, other: "Rectangle") -> bool:
        """Whether they share ground, not only an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def grow(self, margin: float) -> "Rectangle":
        """Move every edge out."""
        return Rectangle(self.left - margin, self.bottom - margin, self.right + margin, self.top + margin)

    def divide(self, side: float) -> list["Rectangle"]:
        """As many equal parts as fit with sides of ``side`` or more, row by row from the top left."""
        across = max(1, math.floor((self.right - self.left) / side + _SLACK))
        down = max(1, math.floor((self.top - self.bottom) / side + _SLACK))
        width, height = (self.right - self.left) / across, (self.top - self.bottom) / down
        return [
            Rectangle(
                self.left + j * width,
                self.top - (i + 1) * height,
                self.left + (j + 1) * width,
                self.top - i * height,
            )
            for i in range(down)
            for j in range(across)
        ]


def shared_grounds(sites: Sequence[Ground]) -> list[tuple[int, ...]]:
    """Group sites that show the same ground: one CRS (or none in both) and overlapping rectangles."""
    groups: list[set[int]] = []
    for index, site in enumerate(sites):
        touching = [group for group in groups if any(_same_ground(sites[other], site) for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append({index}.union(*touching))
    return [tuple(sorted(group)) for group in groups]


def refuse_shared_ground(train: Sequence[Ground], other: Sequence[Ground]) -> None:
    """Check that sites to be scored show no ground that trains.

    Raises:
        ValueError: names the first that does.
    """
    for site in other:
        for trained in train:
            if _same_ground(site, trained):
                unnamed = site.grid.crs is None
                raise ValueError(
                    f"site {site.name} shows ground of {trained.name}, which trains: "
                    "scores there mean nothing; give other ground"
                    + (", or both files their CRS if their places are not the same" if unnamed else "")
                )


def pixels_inside(rectangle: Rectangle, site: Ground) -> tuple[int, int, int, int]:
    """First row and column, last row and column (exclusive) of the pixels wholly inside."""
    return _pixels(rectangle, site, _SLACK)


def pixels_touched(rectangle: Rectangle, site: Ground) -> tuple[int, int, int, int]:
    """First row and column, last row and column (exclusive) of the pixels that share ground with it."""
    return _pixels(rectangle, site, 1 - _SLACK)


def _pixels(rectangle: Rectangle, site: Ground, outward: float) -> tuple[int, int, int, int]:
    grid, (height, width) = site.grid, site.shape
    first_row = math.ceil((grid.top - rectangle.top) / grid.resolution - outward)
    last_row = math.floor((grid.top - rectangle.bottom) / grid.resolution + outward)
    first_column = math.ceil((rectangle.left - grid.left) / grid.resolution - outward)
    last_column = math.floor((rectangle.right - grid.left) / grid.resolution + outward)
    top, bottom = (min(max(row, 0), height) for row in (first_row, last_row))
    left, right = (min(max(column, 0), width) for column in (first_column, last_column))
    return top, left, bottom, right


def _same_ground(a: Ground, b: Ground) -> bool:
    return a.grid.crs == b.grid.crs and Rectangle.of(a).overlaps(Rectangle.of(b))
