"""Which tile of a stream comes when: a function of the seed and the epoch, whoever reads it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Order = Callable[[int], int]
"""From the number of a sample in its epoch to the number of its tile."""


def shuffled_order(tiles: int, seed: int, epoch: int) -> Order:
    """A permutation of all tiles; nothing is kept of it in memory, however many there are."""
    import grain

    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    order: Any = grain.MapDataset.range(tiles).shuffle(key)
    return lambda sample: int(order[sample])


def weighted_order(
    pair_of: Int[np.ndarray, " tiles"],
    weights: Float[np.ndarray, " pairs"],
    seed: int,
    epoch: int,
    batch_size: int,
) -> Order:
    """Tiles drawn with replacement; a pair's share of a batch is off from its weight by less than one tile.

    Args:
        pair_of: number of the pair of each tile, in growing order.
        weights: how often tiles of each pair come, relative to the others; 0 for one without a tile.
        seed: of the draws.
        epoch: that is drawn for.
        batch_size: samples that are drawn together.
    """
    count = np.bincount(pair_of, minlength=len(weights))
    first, ends = np.cumsum(count) - count, np.cumsum(weights) / np.sum(weights)

    def draw(sample: int) -> int:
        batch, at = divmod(sample, batch_size)
        rng = np.random.default_rng([seed, epoch, batch])
        position = (at + rng.random()) / batch_size
        # Below 1 also after rounding, which is past the last pair.
        pair = int(np.searchsorted(ends, min(position, 1 - 1e-9) * ends[-1], side="right"))
        return int(first[pair] + rng.integers(count[pair], size=batch_size)[at])

    return draw
