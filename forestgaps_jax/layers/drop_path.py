"""Stochastic depth."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Rate = float | Float[Array, ""]
"""A chance from 0 to 1; a traced scalar changes from step to step without a new compile."""


def drop_path(
    branch: Float[Array, "batch ..."], rate: Rate, rngs: nnx.Rngs | None
) -> Float[Array, "batch ..."]:
    """Drop a residual branch for whole samples at random; scale up what stays, so that the mean is kept.

    Args:
        branch: what would be added to the identity.
        rate: chance that a sample loses the branch; 1 drops it always.
        rngs: the ``drop_path`` stream is drawn from.

    Raises:
        ValueError: the rate is no chance, or something may be dropped and there is no ``drop_path`` stream.

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382.

    >>> jnp.unique(drop_path(jnp.ones((100, 1)), 0.5, nnx.Rngs(drop_path=0))).tolist()
    [0.0, 2.0]
    """
    if isinstance(rate, (int, float)):
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"drop_path_rate = {rate}: must be from 0 to 1")
        if rate == 0.0:
            return branch
    if rngs is None or not {"drop_path", "default"} & set(rngs):
        raise ValueError("training with drop_path_rate > 0 needs rngs=nnx.Rngs(drop_path=...)")
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(rngs.drop_path(), keep, branch.shape[:1])
    factor = kept / jnp.where(keep > 0.0, keep, 1.0)
    return branch * factor.reshape(-1, *(1,) * (branch.ndim - 1)).astype(branch.dtype)


class DropPath(nnx.Module):
    """Stochastic depth of one block, which has a fixed share of the deepest block's rate.

    Args:
        share: of the rate; block ``i`` of ``n`` has ``(i + 1) / n``, since early features serve all others.

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382.

    >>> drop = DropPath(share=0.5)
    >>> jnp.unique(drop(jnp.ones((100, 1)), 1.0, nnx.Rngs(drop_path=0), train=True)).tolist()
    [0.0, 2.0]
    """

    def __init__(self, share: float = 1.0):
        self.share = share

    def __call__(
        self,
        branch: Float[Array, "batch ..."],
        rate: Rate,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
    ) -> Float[Array, "batch ..."]:
        """Drop the branch by ``share * rate`` in training; leave it in evaluation."""
        return drop_path(branch, self.share * rate, rngs) if train else branch
