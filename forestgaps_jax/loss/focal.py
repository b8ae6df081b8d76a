"""Focal loss, and the cross-entropy that it grows from."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from forestgaps_jax.loss.base import GapLoss, Weight
from forestgaps_jax.loss.inputs import mask_invalid
from forestgaps_jax.loss.reduction import mean_over_valid
from forestgaps_jax.settings import Fraction, NotNegative

_LARGEST_LOGIT = 1e30
"""Its products with a focusing exponent, and their sum over a batch, are still float32."""


def focal_loss(
    logits: Float[Array, "batch ..."],
    targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
    *,
    alpha: Weight | None = 0.25,
    gamma: float = 2.0,
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    from_logits: bool = True,
) -> Float[Array, ""]:
    r"""Cross-entropy that turns to hard pixels, averaged over the valid pixels.

    $$L = -\alpha y (1-p)^\gamma \log p - (1-\alpha) (1-y) p^\gamma \log(1-p), \quad p = \sigma(x)$$

    Everything is computed from $\log\sigma(\pm x)$, so that value and gradient stay finite, and the most
    wrong pixels keep their gradient, for any finite logit in any float type. Beyond 1e30 the value is that
    of 1e30.

    Args:
        logits: any shape with the batch first.
        targets: 1 for gap, 0 for not; of the same shape.
        alpha: weight of gap pixels, ``1 - alpha`` that of the others; None for 1 and 1.
        gamma: focusing exponent; 0 gives the weighted cross-entropy.
        valid: pixels that count; None for all.
        sample_weight: factor on each sample's terms.
        from_logits: False where ``logits`` are probabilities, see `logits_from_probabilities`.

    Returns:
        A float32 scalar; 0 with zero gradient where no pixel is valid.

    Raises:
        ValueError: shapes differ, or a probability lies outside [0, 1].

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002.

    >>> round(focal_loss(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)), alpha=0.5).item(), 4)  # ln 2 / 8
    0.0866
    """
    logits, targets, pixels = mask_invalid(logits, targets, valid, from_logits=from_logits)
    logits = _held(logits)
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    weight_gap, weight_rest = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    gap = -weight_gap * jnp.exp(gamma * log_q) * log_p
    rest = -weight_rest * jnp.exp(gamma * log_p) * log_q
    return mean_over_valid(targets * gap + (1.0 - targets) * rest, pixels, sample_weight)


def bce_loss(
    logits: Float[Array, "batch ..."],
    targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
    *,
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    from_logits: bool = True,
) -> Float[Array, ""]:
    """Binary cross-entropy, averaged over the valid pixels.

    Arguments, result and errors are those of `focal_loss`, of which this is the case
    ``alpha=None, gamma=0``.

    >>> round(bce_loss(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))).item(), 4)  # ln 2
    0.6931
    """
    return focal_loss(
        logits,
        targets,
        alpha=None,
        gamma=0.0,
        valid=valid,
        sample_weight=sample_weight,
        from_logits=from_logits,
    )


def _held(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Logits small enough for products of them; the slope is that of what was given.

    The slope of the modulating factor is ``gamma * log p`` times what is 0 for a very wrong pixel: NaN, if
    the first is no float32.
    """
    held = jax.lax.stop_gradient(jnp.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT))
    return held + (logits - jax.lax.stop_gradient(logits))


@dataclass(frozen=True)
class FocalLoss(GapLoss):
    """`focal_loss` with its settings fixed: ``alpha`` from 0 to 1 or None, ``gamma`` 0 or more.

    >>> loss = FocalLoss(alpha=0.5, label_smoothing=0.1)
    >>> round(loss(jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))).item(), 4)  # ln 2 / 8
    0.0866
    """

    alpha: Fraction | None = 0.25
    gamma: NotNegative = 2.0

    arguments: ClassVar[tuple[str, ...]] = ("alpha",)

    def _value(self, logits: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return focal_loss(logits, targets, alpha=self.alpha, gamma=self.gamma, **pixels)


@dataclass(frozen=True)
class BCELoss(GapLoss):
    """`bce_loss` with its settings fixed."""

    def _value(self, logits: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return bce_loss(logits, targets, **pixels)
