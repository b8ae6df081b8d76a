"""Initial weights."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

_DEVIATION_CUT_AT_2 = 0.87962566103423978
"""Standard deviation of a standard normal that is cut at -2 and 2."""


def he_normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """He's initialisation of a kernel ``[..., in, out]``: ``nnx.initializers.he_normal``, quick to start.

    XLA compiles a random draw anew for every shape, which takes most of the time that it takes to make a
    network. So a power of 16 numbers is drawn (of 4, above a million), where as many are needed, and brought
    into shape on the host.

    Source: He et al. 2015, Delving Deep into Rectifiers, arXiv:1502.01852.

    >>> kernel = he_normal(jax.random.key(0), (3, 3, 8, 16))
    >>> kernel.shape, round(float(kernel.std() ** 2 * 3 * 3 * 8), 1)
    ((3, 3, 8, 16), 2.0)
    """
    count = math.prod(shape)
    bits = (count - 1).bit_length()
    step = 4 if bits <= 20 else 2
    drawn = _draw(key, 1 << -(-bits // step) * step)
    on_host = drawn if isinstance(drawn, Tracer) else np.asarray(drawn)
    deviation = math.sqrt(2.0 / math.prod(shape[:-1])) / _DEVIATION_CUT_AT_2
    return jnp.asarray(on_host[:count].reshape(shape) * deviation, dtype)


@partial(jax.jit, static_argnums=1)
def _draw(key: PRNGKeyArray, size: int) -> Float[Array, " size"]:
    return jax.random.truncated_normal(key, -2.0, 2.0, (size,))
