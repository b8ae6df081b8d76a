"""What losses are given: shapes checked, probabilities and hard labels converted, unknown pixels out."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Num

from forestgaps_jax.fields import checked
from forestgaps_jax.settings import Rate


def check_shapes(
    outputs: Num[Array, "..."],
    targets: Num[Array, "..."] | Bool[Array, "..."],
    valid: Bool[Array, "..."] | None,
    name: str = "logits",
) -> None:
    """Refuse what would broadcast: [B,H,W] against [B,H,W,1] would be silently wrong.

    Raises:
        ValueError: names the shapes that differ.
    """
    for what, array in (("targets", targets), ("valid", valid)):
        if array is not None and array.shape != outputs.shape:
            raise ValueError(f"{what} have shape {array.shape}, {name} {outputs.shape}: must be the same")


def mask_invalid(
    outputs: Float[Array, "batch ..."],
    targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
    valid: Bool[Array, "batch ..."] | None,
    *,
    from_logits: bool = True,
    name: str = "logits",
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    """Outputs, targets and pixel weights in float32, with zeros where a pixel is not valid.

    Masking before any arithmetic keeps NaN in unknown pixels out of the value and of its gradient.

    Args:
        outputs: what the network gave, called ``name`` in errors.
        targets: the truth, of the same shape.
        valid: pixels that count; None for all.
        from_logits: False turns ``outputs`` from probabilities into logits.
        name: what the outputs are.

    Raises:
        ValueError: the shapes differ, or a probability lies outside [0, 1].
    """
    check_shapes(outputs, targets, valid, name)
    if not from_logits:
        outputs = logits_from_probabilities(outputs, valid)
    outputs, targets = outputs.astype(jnp.float32), targets.astype(jnp.float32)
    if valid is None:
        return outputs, targets, jnp.ones_like(outputs)
    return jnp.where(valid, outputs, 0), jnp.where(valid, targets, 0), valid.astype(jnp.float32)


def logits_from_probabilities(
    probabilities: Float[Array, "*shape"], valid: Bool[Array, "*shape"] | None = None
) -> Float[Array, "*shape"]:
    """Logits, float32 and finite also at exactly 0 and 1.

    Probabilities are held 2^-23 (2^-14 in float16) away from 0 and 1: as near as the sigmoid in float32 still
    tells from 1, and as the slope fits float16. The gradient passes as if they were not held: the most wrong
    pixels keep theirs, which a plain clip would set to 0.

    Args:
        probabilities: from 0 to 1.
        valid: pixels that count; the others may hold anything, and get logit 0. None for all.

    Raises:
        ValueError: a probability that counts lies outside [0, 1]; inside a compiled or differentiated
            function values are not known, and such probabilities count as 0 or 1.

    >>> logits_from_probabilities(jnp.asarray([0.0, 0.5, 1.0])).round(2).tolist()
    [-15.9399995803833, 0.0, 15.9399995803833]
    """
    if valid is not None:
        probabilities = jnp.where(valid, probabilities, 0.5)
    known = not isinstance(probabilities, Tracer)
    if known and jnp.any((probabilities < 0) | (probabilities > 1)):
        raise ValueError(
            f"from_logits=False, but values go from {jnp.nanmin(probabilities)} to "
            f"{jnp.nanmax(probabilities)}: must be from 0 to 1; give logits with from_logits=True"
        )
    least = max(float(jnp.finfo(jnp.float32).eps), float(jnp.finfo(probabilities.dtype).tiny))
    given = probabilities.astype(jnp.float32)
    held = jax.lax.stop_gradient(jnp.clip(given, least, 1 - least))
    return jax.scipy.special.logit(held + (given - jax.lax.stop_gradient(given)))


def smooth_labels(
    targets: Num[Array, "*shape"] | Bool[Array, "*shape"], smoothing: float
) -> Float[Array, "*shape"]:
    """Move labels by the share ``smoothing`` towards one half: ``y (1 - s) + s / 2``, float32.

    Unknown pixels (NaN) stay unknown, and the losses leave pixels that are not valid out afterwards.

    Args:
        targets: 1 for gap, 0 for not.
        smoothing: from 0 to below 1.

    Raises:
        ValueError: smoothing out of range.

    Source: Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv:1512.00567, for two classes.

    >>> smooth_labels(jnp.asarray([0, 1]), 0.5).tolist()
    [0.25, 0.75]
    """
    smoothing = checked("label_smoothing", smoothing, Rate)
    return targets.astype(jnp.float32) * (1.0 - smoothing) + smoothing / 2.0
