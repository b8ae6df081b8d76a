"""From the losses of pixels to that of a batch: weights of samples, the mean over valid pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def weight_samples(
    values: Float[Array, "batch ..."], sample_weight: Float[Array, " batch"] | None
) -> Float[Array, "batch ..."]:
    """Multiply each sample's values by its weight.

    Raises:
        ValueError: not one weight per sample.
    """
    if sample_weight is None:
        return values
    if sample_weight.shape != values.shape[:1]:
        raise ValueError(f"sample_weight has shape {sample_weight.shape}: must be {values.shape[:1]}")
    return values * sample_weight.astype(jnp.float32).reshape(-1, *(1,) * (values.ndim - 1))


def mean_over_valid(
    values: Float[Array, "batch ..."],
    pixels: Float[Array, "batch ..."],
    sample_weight: Float[Array, " batch"] | None,
) -> Float[Array, ""]:
    """Sum of the weighted values of valid pixels over the number of valid pixels; 0 where there is none."""
    total = jnp.sum(weight_samples(values * pixels, sample_weight))
    return total / jnp.maximum(jnp.sum(pixels), 1.0)
