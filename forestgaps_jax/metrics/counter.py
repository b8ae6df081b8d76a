"""Exact counts on the device: unsigned 64-bit numbers where jax has 32 bits."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from forestgaps_jax.types import pytree_dataclass

_LARGEST_UPDATE = 2**32


@pytree_dataclass
class ExactCounter:
    """An array of unsigned 64-bit counts, each held as two 32-bit halves.

    jax has no 64-bit integers by default, float32 loses counts past 2^24 and int32 past 2^31.

    >>> counter = ExactCounter.zeros(2).add(jnp.array([2**32 - 1, 3], jnp.uint32))
    >>> counter.merge(counter).to_numpy()
    array([8589934590,          6])

    Attributes:
        low: lower halves.
        high: upper halves.
    """

    low: UInt32[Array, "*shape"]
    high: UInt32[Array, "*shape"]

    @staticmethod
    def zeros(*shape: int) -> "ExactCounter":
        """Nothing counted yet."""
        # Two buffers: donated arrays must not share one.
        return ExactCounter(jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.uint32))

    def add(self, amounts: UInt32[Array, "*shape"]) -> "ExactCounter":
        """Count on."""
        low = self.low + amounts
        return ExactCounter(low, self.high + (low < self.low).astype(jnp.uint32))

    def merge(self, other: "ExactCounter") -> "ExactCounter":
        """Add the counts of another, number by number."""
        added = self.add(other.low)
        return ExactCounter(added.low, added.high + other.high)

    def to_numpy(self) -> Int[np.ndarray, "*shape"]:
        """The counts as int64; waits for the device."""
        high, low = np.asarray(self.high, np.int64), np.asarray(self.low, np.int64)
        return (high << 32) + low


def check_countable(name: str, first: Array, **others: Array | None) -> None:
    """Refuse what would broadcast, and batches whose pixels one 32-bit update cannot hold.

    Raises:
        ValueError: shapes differ, or the batch has 2^32 pixels or more.
    """
    for other, array in others.items():
        if array is not None and array.shape != first.shape:
            raise ValueError(f"{other} have shape {array.shape}, {name} {first.shape}: must be the same")
    if first.size >= _LARGEST_UPDATE:
        raise ValueError(f"a batch of {first.size} pixels: must be below 2^32; give smaller batches")
