"""Batches made on the device, inside the compiled step, from rasters that live there."""

from collections.abc import Sequence
from dataclasses import field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from forestgaps_jax.data.augment import Augmentation
from forestgaps_jax.data.held import Rasters
from forestgaps_jax.data.order import shuffled
from forestgaps_jax.types import Batch, pytree_dataclass

Heights = Float32[Array, "_"] | Sequence[float]
"""Canopy heights, metres; samplers keep them as arrays, so that other heights compile nothing anew."""


@pytree_dataclass
class SiteDraw:
    """Draws training tiles site by site, with replacement.

    Attributes:
        ends: ``[sites]`` cumulated share of each site's tiles among those drawn.
        first: ``[sites]`` number of the site's first tile; tiles lie site by site.
        count: ``[sites]`` its tiles.
    """

    ends: Float[Array, " sites"]
    first: Int[Array, " sites"]
    count: Int[Array, " sites"]

    @staticmethod
    def of(places: Int[np.ndarray, "tiles 3"], shares: Float[np.ndarray, " sites"]) -> "SiteDraw":
        """Draw tiles at these places, ordered by site, with these shares of each site, which sum to 1."""
        count = np.bincount(places[:, 0], minlength=len(shares))
        first = np.cumsum(count) - count
        return SiteDraw(jnp.asarray(np.cumsum(shares), jnp.float32), jnp.asarray(first), jnp.asarray(count))

    def __call__(self, key: PRNGKeyArray, batch_size: int) -> Int[Array, " batch"]:
        """Numbers of a batch's tiles; a site's share of a batch is off by less than one tile."""
        site_key, tile_key = jax.random.split(key)
        position = (jnp.arange(batch_size) + jax.random.uniform(site_key)) / batch_size
        # Below 1 also after rounding, which is past the last site.
        position = jnp.minimum(position, 1.0 - 1e-6) * self.ends[-1]
        site = jnp.searchsorted(self.ends, position, side="right")
        within = jax.random.randint(tile_key, (batch_size,), 0, 2**30) % self.count[site]
        return self.first[site] + within


class TrainingDraws:
    """Augments and labels training tiles; the fields are those of the samplers that it is a part of."""

    key: PRNGKeyArray
    thresholds: Heights
    threshold_range: Heights | None
    thresholds_per_tile: int
    augmentation: Augmentation | None

    def __post_init__(self) -> None:
        for name in ("thresholds", "threshold_range"):
            if (heights := getattr(self, name)) is not None:
                object.__setattr__(self, name, jnp.asarray(heights, jnp.float32))

    def training_batch(
        self,
        step: Int[Array, ""],
        tiles: Float[Array, "batch size size 2"],
        resolution: Float[Array, " batch"],
        used: Bool[Array, " batch"],
    ) -> Batch:
        """Tiles of DSM and CHM (m) as the batch of a global step; all draws are folded from it."""
        _, draw_key = jax.random.split(self.key)
        augment_key, threshold_key = jax.random.split(jax.random.fold_in(draw_key, step))
        if self.augmentation:
            tiles, resolution = self.augmentation(tiles, resolution, augment_key)
        return label_tiles(tiles, resolution, self._draw_thresholds(threshold_key, tiles.shape[0]), used)

    def _draw_thresholds(
        self, key: PRNGKeyArray, size: int
    ) -> Float[Array, " batch"] | Float[Array, "batch thresholds"]:
        count, listed = self.thresholds_per_tile, jnp.asarray(self.thresholds)
        if self.threshold_range is not None:
            low, high = self.threshold_range
            if count == 1:
                return jax.random.uniform(key, (size,), minval=low, maxval=high)
            # One from each of equal parts of the range.
            part = jnp.arange(count) + jax.random.uniform(key, (size, count))
            return low + (high - low) / count * part
        if count == 1:
            return jax.random.choice(key, listed, (size,))
        keys = jax.random.split(key, size)
        return jax.vmap(lambda key: jax.random.choice(key, listed, (count,), replace=False))(keys)


def sampling_key(seed: int) -> PRNGKeyArray:
    """What the draws of a sampler are folded from; none of them is one of the network's."""
    # Far from 0, where fold_in and split give equal keys.
    return jax.random.fold_in(jax.random.key(seed), 2**31)


@pytree_dataclass
class TileSampler(TrainingDraws):
    """Batches as a pure function of the step (see `forestgaps_jax.types.Sampler`).

    For training, an epoch is a permutation of the tiles drawn from (key, epoch); each tile comes once (but
    with ``draw``: as often as sites are to come), is augmented and gets a threshold at random. For evaluation
    (``shuffle=False``) tiles come in order, as they are, once for each threshold. The last batch is filled up
    with tiles that have no known pixel (but with ``draw``: with more draws), so that it has the shape of the
    others and counts nothing twice.

    Attributes:
        rasters: the heights.
        places: site, row and column of each tile.
        key: what the order and all draws are folded from.
        tile_size: side of a tile, pixels.
        batch_size: tiles in a batch.
        thresholds: canopy heights, metres.
        threshold_range: draw training thresholds evenly from here instead; metres.
        shuffle: a training sampler.
        augmentation: what happens to training tiles; None for nothing.
        draw: how training tiles are drawn by site; None: each comes once an epoch.
        thresholds_per_tile: how many are drawn for a training tile, all different.
    """

    rasters: Rasters
    places: Int[Array, "tiles 3"]
    key: PRNGKeyArray
    tile_size: int = field(metadata={"static": True})
    batch_size: int = field(metadata={"static": True})
    thresholds: Heights
    threshold_range: Heights | None = None
    shuffle: bool = field(default=False, metadata={"static": True})
    augmentation: Augmentation | None = field(default=None, metadata={"static": True})
    draw: SiteDraw | None = None
    thresholds_per_tile: int = field(default=1, metadata={"static": True})

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the tiles (for evaluation: at every threshold)."""
        return -(-self._slots // self.batch_size)

    @property
    def _slots(self) -> int:
        return self.places.shape[0] * (1 if self.shuffle else len(self.thresholds))

    def sample(self, step: Int[Array, ""]) -> Batch:
        """The batch of a global step; traceable."""
        slots, used = self._slots_of(step)
        places = self.places[self._numbers(step, slots)]
        tiles, resolution = self.rasters.cut(places, self.tile_size), self.rasters.resolution[places[:, 0]]
        if self.shuffle:
            return self.training_batch(step, tiles, resolution, used)
        listed = jnp.asarray(self.thresholds)
        return label_tiles(tiles, resolution, listed[slots // self.places.shape[0]], used)

    def read(
        self, numbers: Sequence[int]
    ) -> tuple[Float32[np.ndarray, "tiles size size 2"], Float32[np.ndarray, " tiles"]]:
        """DSM and CHM of some of the places, metres, as they are, and the sides of their pixels, metres."""
        places = self.places[np.asarray(numbers)]
        tiles = self.rasters.cut(places, self.tile_size)
        return np.asarray(tiles), np.asarray(self.rasters.resolution[places[:, 0]])

    def describe(self, step: int) -> list[str]:
        """The tiles of a global step, as site, row and column."""
        slots, used = self._slots_of(jnp.int32(step))
        numbers, used = np.asarray(self._numbers(jnp.int32(step), slots)), np.asarray(used)
        return [
            f"{self.rasters.names[site]} row {row} column {column}"
            for site, row, column in np.asarray(self.places)[numbers[used]].tolist()
        ]

    def _slots_of(self, step: Array) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
        """Places of a step's samples in their epoch, and which of them fill up no batch."""
        slots = step % self.steps_per_epoch * self.batch_size + jnp.arange(self.batch_size)
        # Draws fill the last batch up with more of them.
        drawn = self.shuffle and self.draw is not None
        return slots % self._slots, (slots < self._slots) | drawn

    def _numbers(self, step: Array, slots: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """Which of `places` a step takes."""
        if not self.shuffle:
            return slots % self.places.shape[0]
        order_key, _ = jax.random.split(self.key)
        if self.draw is not None:
            return self.draw(jax.random.fold_in(order_key, step), self.batch_size)
        epoch = step // self.steps_per_epoch
        return shuffled(slots, self.places.shape[0], jax.random.fold_in(order_key, epoch))


def label_tiles(
    tiles: Float[Array, "batch size size 2"],
    resolution: Float[Array, " batch"],
    threshold: Float[Array, " batch"] | Float[Array, "batch thresholds"],
    used: Bool[Array, " batch"],
) -> Batch:
    """Tiles of DSM and CHM (m) with what is gap in them; nothing is known of those that are not used."""
    tiles = jnp.where(used[:, None, None, None], tiles, jnp.nan)
    dsm, chm = tiles[..., :1], tiles[..., 1:]
    heights = threshold.reshape(threshold.shape[0], -1, 1, 1)
    gap = chm[:, None, :, :, 0] < heights
    return Batch(
        dsm=dsm,
        mask=jnp.moveaxis(gap.astype(jnp.float32), 1, -1),
        threshold=threshold,
        valid=jnp.isfinite(dsm) & jnp.isfinite(chm),
        chm=chm,
        resolution=resolution,
    )
