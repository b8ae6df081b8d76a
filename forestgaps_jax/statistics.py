"""How much gap there is below each threshold in what training reads."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.data.reading import read_batches
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.tile_stream import TileStream
from forestgaps_jax.metrics import ConfusionCounts, threshold_index
from forestgaps_jax.types import BatchSource, Sampler


def gap_shares(source: BatchSource, thresholds: Sequence[float]) -> dict[float, float]:
    """Share of gap among the valid pixels, by threshold.

    A `TileSampler` is counted in full, every tile at every threshold; another source over one epoch, each
    batch at the thresholds that it comes with.

    Args:
        source: training data.
        thresholds: listed canopy heights, metres.

    Returns:
        The share for each listed threshold; NaN for one that does not occur.
    """
    listed = tuple(float(threshold) for threshold in thresholds)
    if isinstance(source, TileSampler):
        source = replace(source, shuffle=False, augmentation=None, thresholds=listed, threshold_range=None)
    if isinstance(source, TileStream):
        source = source.whole()  # all processes are to weigh by the same shares
    counts = ConfusionCounts.zeros(len(listed) + 1)
    for position, batch in enumerate(read_batches(source)):
        counts = _count(counts, batch, np.int32(position), listed)
    rows = counts.to_numpy()[:-1]
    with np.errstate(invalid="ignore"):
        return dict(zip(listed, (rows[:, 0] / rows.sum(axis=1)).tolist(), strict=True))


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _count(counts: ConfusionCounts, source: Any, position: Any, listed: tuple[float, ...]) -> ConfusionCounts:
    batch = (source.sample(position) if isinstance(source, Sampler) else source).by_threshold()
    gap = jnp.asarray(batch.mask) > 0.5
    group = threshold_index(jnp.asarray(batch.threshold), listed)
    return counts.update(gap, gap, group=group, valid=jnp.asarray(batch.counted))
