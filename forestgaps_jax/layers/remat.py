"""What the backward pass keeps of the forward pass, and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_DEAR = "dear"


def dear(x: Array) -> Array:
    """Mark what costs much to compute again: products and sums over many numbers."""
    return checkpoint_name(x, _DEAR)


def saving_memory(function: Callable[..., Any], *, everything: bool = False) -> Callable[..., Any]:
    """A function of modules and arrays whose backward pass keeps less of it than by default.

    On a CPU, activations are computed again from what is `dear`: they are as large as that, and to read them
    would take as long. It needs `forestgaps_jax.compilation.compiler_options`; other devices keep all.

    Args:
        function: what is differentiated.
        everything: keep only its arguments, on every device.
    """
    if everything:
        return nnx.remat(function)
    if jax.default_backend() != "cpu":
        return function
    return nnx.remat(function, policy=jax.checkpoint_policies.save_only_these_names(_DEAR))
