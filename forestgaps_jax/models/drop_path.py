"""Stochastic depth."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def drop_path(
    branch: Float[Array, "batch ..."], rate: float, rngs: nnx.Rngs | None
) -> Float[Array, "batch ..."]:
    """Drop a residual branch for whole samples at random; scale up what stays, so that the mean is kept.

    Args:
        branch: what would be added to the identity.
        rate: chance that a sample loses the branch; 1 drops it always.
        rngs: the ``drop_path`` stream is drawn from.

    Raises:
        ValueError: something is to be dropped and there is no ``drop_path`` stream.

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382.
    """
    if rate == 0.0:
        return branch
    if rngs is None:
        raise ValueError("training with drop_path_rate > 0 needs rngs=nnx.Rngs(drop_path=...)")
    if rate == 1.0:
        return jnp.zeros_like(branch)
    keep = jax.random.bernoulli(rngs.drop_path(), 1.0 - rate, branch.shape[:1])
    return branch * (keep.reshape(-1, *(1,) * (branch.ndim - 1)) / (1.0 - rate)).astype(branch.dtype)
