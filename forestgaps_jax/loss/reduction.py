"""What every pixel loss shares: checked inputs, pixels without data taken out, the mean over the others."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num


def mask_invalid(
    logits: Float[Array, "batch ..."],
    targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
    valid: Bool[Array, "batch ..."] | None,
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """Logits, targets and pixel weights in float32, with zeros where a pixel is not valid.

    Masking before any arithmetic keeps NaN in unknown pixels out of the value and of its gradient.

    Raises:
        ValueError: the shapes differ; nothing is broadcast, since [B,H,W] against [B,H,W,1] would be
            silently wrong.
    """
    for name, array in (("targets", targets), ("valid", valid)):
        if array is not None and array.shape != logits.shape:
            raise ValueError(f"{name} have shape {array.shape}, logits {logits.shape}: must be the same")
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    if valid is None:
        return logits, targets, jnp.ones_like(logits)
    return jnp.where(valid, logits, 0), jnp.where(valid, targets, 0), valid.astype(jnp.float32)


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
    pixel_weight: Float[Array, "batch ..."],
    sample_weight: Float[Array, " batch"] | None,
) -> Float[Array, ""]:
    """Sum of the weighted values of valid pixels over the number of valid pixels; 0 where there is none."""
    total = jnp.sum(weight_samples(values * pixel_weight, sample_weight))
    return total / jnp.maximum(jnp.sum(pixel_weight), 1.0)
