"""Which tiles of a validation are worth a picture."""

import jax
import numpy as np

from forestgaps_jax.data.reading import read_batches
from forestgaps_jax.types import Batch, BatchSource, Sampler


def choose_tiles(source: BatchSource, count: int) -> Batch | None:
    """Up to ``count`` tiles of a validation source, on the host, spread over its thresholds.

    Of a sampler, which comes one threshold after the other, batches from all over its epoch are looked at;
    of anything else only the first batch.

    Returns:
        The tiles, with ``valid``, by growing threshold; None where none has a valid pixel.

    >>> dsm, threshold = np.zeros((3, 2, 2, 1)), np.array([20.0, 5.0, 10.0])
    >>> choose_tiles([{"dsm": dsm, "mask": dsm, "threshold": threshold}], 2).threshold
    array([ 5., 20.], dtype=float32)
    """
    if isinstance(source, Sampler):
        steps = {int(step) for step in _spread(source.steps_per_epoch, count)}
        batches = [jax.device_get(_sample(source, np.int32(step))) for step in sorted(steps)]
    else:
        first = next(iter(read_batches(source)))
        batches = [jax.device_get(_sample(first, np.int32(0)) if isinstance(first, Sampler) else first)]
    batches = [batch.by_threshold() for batch in batches]
    parts = [(b.dsm, b.mask, b.threshold, b.counted) for b in batches]
    dsm, mask, threshold, valid = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    pixels = [b.resolution for b in batches if b.resolution is not None]
    usable = np.flatnonzero(valid.any(axis=(1, 2, 3)))
    if not len(usable):
        return None
    ordered = usable[np.argsort(threshold[usable], kind="stable")]
    chosen = ordered[_spread(len(ordered), min(count, len(ordered)))]
    resolution = np.concatenate(pixels)[chosen] if len(pixels) == len(batches) else None
    return Batch(dsm[chosen], mask[chosen], threshold[chosen], valid[chosen], resolution=resolution)


def _spread(length: int, count: int) -> np.ndarray:
    """Places of ``count`` items spread evenly over ``length``, the first half a gap from the start."""
    return ((np.arange(count) + 0.5) / count * length).astype(int)


_sample = jax.jit(lambda sampler, step: sampler.sample(step))
