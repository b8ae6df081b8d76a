"""Tiles of a batch on their way from the disk into the compiled step."""

from dataclasses import field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, PRNGKeyArray

from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.held import Names
from forestgaps_jax.data.sampler import Heights, TrainingDraws, label_tiles
from forestgaps_jax.types import Batch, pytree_dataclass


@pytree_dataclass
class CutTiles(TrainingDraws):
    """Tiles of a batch, from which the compiled step makes the batch, as a `TileSampler` does.

    Attributes:
        tiles: ``[batch, size, size, 2]`` DSM and CHM, metres; NaN where not known.
        resolution: ``[batch]`` side of a pixel, metres.
        used: ``[batch]`` False for those that fill up the batch or could not be read.
        key: what the draws are folded from.
        threshold: ``[batch]`` canopy height, metres; None to draw it.
        thresholds: to draw from, metres.
        threshold_range: to draw from instead, metres.
        thresholds_per_tile: how many are drawn for a tile.
        augmentation: what happens to training tiles; None for nothing.
        names: where the tiles are from.
    """

    tiles: Float32[Array | np.ndarray, "batch size size 2"]
    resolution: Float32[Array | np.ndarray, " batch"]
    used: Bool[Array | np.ndarray, " batch"]
    key: PRNGKeyArray
    threshold: Float32[Array | np.ndarray, " batch"] | None
    thresholds: Heights
    threshold_range: Heights | None
    thresholds_per_tile: int = field(metadata={"static": True})
    augmentation: Augmentation | None = field(metadata={"static": True})
    names: Names = field(metadata={"static": True})

    @property
    def steps_per_epoch(self) -> int:
        """It is one batch."""
        return 1

    @property
    def batch_size(self) -> int:
        """Tiles in it."""
        return self.tiles.shape[0]

    def sample(self, step: Int[Array, ""] | Any) -> Batch:
        """The batch, with what is drawn for a global step; traceable."""
        tiles, resolution, used = map(jnp.asarray, (self.tiles, self.resolution, self.used))
        if self.threshold is None:
            return self.training_batch(step, tiles, resolution, used)
        return label_tiles(tiles, resolution, jnp.asarray(self.threshold), used)

    def describe(self, step: int) -> list[str]:
        """The tiles, as file, row and column; those that fill up are not among them."""
        return list(self.names)
