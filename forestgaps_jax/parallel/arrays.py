"""Arrays that lie on many devices, on one device or on the host."""

from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")


def on_one_device(tree: T) -> T:
    """The whole arrays on this process's first device; asks no other process, copies only what was divided.

    Arrays with parts in other processes stay as they are.
    """

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1 or not is_here(leaf):
            return leaf
        return leaf.addressable_data(0) if leaf.is_fully_replicated else jax.numpy.asarray(gathered(leaf))

    return jax.tree.map(take, tree)


def _is_readable(leaf: Any) -> bool:
    """Whether NumPy can read it."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


def is_here(tree: Any) -> bool:
    """Whether this process has the whole arrays."""

    def whole(leaf: Any) -> bool:
        if _is_readable(leaf):
            return True
        parts = {str(shard.index): shard.data.size for shard in leaf.addressable_shards}
        return sum(parts.values()) == leaf.size

    return all(map(whole, jax.tree.leaves(tree)))


def gathered(leaf: Any) -> np.ndarray:
    """An array on the host, of the parts that lie on this process's devices.

    Raises:
        ValueError: other processes have parts that are not here.
    """
    if _is_readable(leaf):
        return np.asarray(leaf)
    if not is_here(leaf):
        raise ValueError(f"an array {leaf.shape} has parts that lie in other processes")
    whole = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        whole[shard.index] = shard.data
    return whole


def from_all(leaf: Any) -> np.ndarray:
    """An array on the host with the parts of all processes, which all ask for it."""
    if _is_readable(leaf):
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
