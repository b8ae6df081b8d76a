"""The values that pass between the rooms: a site's rasters, a batch of tiles, a source of batches."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

SAME_THRESHOLD = 1e-3
"""Metres that a height threshold may be off a listed one and still be the same."""

Listed = tuple[float, ...] | Float[Array, "_"]
"""Canopy heights that are scored one by one, metres: plain, or of a function that is being compiled."""

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def pytree_dataclass(cls: type[_T]) -> type[_T]:
    """Make a class a frozen dataclass that jax sees as a tree of its fields.

    A field with ``metadata={"static": True}`` is no leaf but part of the structure. Unlike
    ``jax.tree_util.register_dataclass``, rebuilding a tree skips ``__init__``, whose types hold for arrays:
    jax also fills trees with shapes, comparisons and host copies.
    """
    cls = dataclass(frozen=True)(cls)
    declared = fields(cls)  # type: ignore[arg-type]  # pyright does not see that it is a dataclass now
    static = [f.name for f in declared if f.metadata.get("static")]
    leaves = [f.name for f in declared if f.name not in static]

    def flatten(tree: _T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in leaves]
        return keyed, tuple(getattr(tree, name) for name in static)

    def unflatten(structure: tuple[Any, ...], values: Iterable[Any]) -> _T:
        tree = object.__new__(cls)
        for name, value in zip((*leaves, *static), (*values, *structure), strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@dataclass(frozen=True)
class Grid:
    """Where a raster lies on the ground.

    Attributes:
        resolution: ground size of a pixel's side, metres.
        left: x of the raster's left edge, metres in ``crs``.
        top: y of the raster's upper edge, metres in ``crs``; rows run south.
        crs: coordinate reference system as WKT; None for a place that is nowhere, such as a virtual forest.
    """

    resolution: float
    left: float = 0.0
    top: float = 0.0
    crs: str | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """One place with its heights on one grid, metres; NaN where a height is not known.

    Attributes:
        name: how tables and figures call it.
        dsm: ``[height, width]`` surface height, terrain included.
        chm: ``[height, width]`` canopy height above ground.
        grid: where the rasters lie.
    """

    name: str
    dsm: Float32[np.ndarray, "height width"]
    chm: Float32[np.ndarray, "height width"]
    grid: Grid

    @property
    def valid(self) -> Bool[np.ndarray, "height width"]:
        """Where both heights are known: the only pixels that train or score."""
        return np.isfinite(self.dsm) & np.isfinite(self.chm)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.dsm.shape[0], self.dsm.shape[1]


@pytree_dataclass
class Batch:
    """Tiles and their labels.

    Attributes:
        dsm: ``[batch, height, width, 1]`` surface height, metres; NaN where not known.
        mask: ``[batch, height, width, thresholds]`` 1 where the canopy is lower than the threshold, else 0.
        threshold: ``[batch]`` canopy height below which a pixel is gap, metres; or ``[batch, thresholds]``,
            where a sampler asks for several of a tile.
        valid: ``[batch, height, width, 1]`` which pixels count; None for all.
        chm: ``[batch, height, width, 1]`` canopy height, metres, for those who regress it; None if not known.
        resolution: ``[batch]`` ground size of a pixel's side, metres; None if not known.
    """

    dsm: Float[Array | np.ndarray, "batch height width 1"]
    mask: Float[Array | np.ndarray, "batch height width thresholds"]
    threshold: Float[Array | np.ndarray, " batch"] | Float[Array | np.ndarray, "batch thresholds"]
    valid: Bool[Array | np.ndarray, "batch height width 1"] | None = None
    chm: Float[Array | np.ndarray, "batch height width 1"] | None = None
    resolution: Float[Array | np.ndarray, " batch"] | None = None

    @property
    def counted(self) -> Any:
        """``valid``, or True everywhere, as an array of the same kind as the others."""
        return np.ones(self.dsm.shape, bool) if self.valid is None else self.valid

    def by_threshold(self) -> "Batch":
        """The batch with one threshold a sample: a tile that is asked for several comes once for each.

        >>> tile, heights = np.zeros((1, 2, 2, 1), np.float32), np.array([[5.0, 10.0]], np.float32)
        >>> batch = Batch(tile, np.zeros((1, 2, 2, 2), np.float32), heights).by_threshold()
        >>> batch.dsm.shape, batch.mask.shape, batch.threshold.tolist()
        ((2, 2, 2, 1), (2, 2, 2, 1), [5.0, 10.0])
        """
        if self.threshold.ndim == 1:
            return self
        count = self.threshold.shape[1]

        def each(values: Any) -> Any:
            return None if values is None else values.repeat(count, axis=0)

        shared = {name: each(getattr(self, name)) for name in ("dsm", "valid", "chm", "resolution")}
        return Batch(mask=one_a_sample(self.mask), threshold=self.threshold.reshape(-1), **shared)


def one_a_sample(images: Any) -> Any:
    """Images ``[batch, height, width, thresholds]`` as ``[samples, height, width, 1]``, tile by tile."""
    batch, height, width, count = images.shape
    return images.transpose(0, 3, 1, 2).reshape(batch * count, height, width, 1)


@runtime_checkable
class Sampler(Protocol):
    """A source of batches that lives on the device: a pytree whose `sample` runs inside the compiled step."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the tiles."""
        ...

    def sample(self, step: Any) -> Batch:
        """The batch of the global optimizer step ``step``: a pure function, traceable by jax."""
        ...


BatchSource = Sampler | Iterable[Any]
"""What training and evaluation read from: a sampler, or anything that yields batches."""


@dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
        train: source of training batches.
        val: source of validation batches, read after every epoch; None to train without.
        test: source of test batches, read once at the end; None for none.
    """

    train: BatchSource
    val: BatchSource | None = None
    test: BatchSource | None = None
