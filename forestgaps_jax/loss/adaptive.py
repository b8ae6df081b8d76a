"""Several losses with learnt weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Num

from forestgaps_jax.loss.base import GapLoss, Loss
from forestgaps_jax.loss.dice import DiceLoss
from forestgaps_jax.loss.focal import FocalLoss

Params = Mapping[str, Float[Array, "..."]]
"""``{"log_variance": [n]}``, one a part."""


@dataclass(frozen=True)
class AdaptiveLoss(GapLoss):
    r"""Parts weighed by learnt uncertainties.

    $$L = \sum_i e^{-s_i} L_i + s_i$$

    A small weight $e^{-s_i}$ costs $s_i$, so weights do not run to the smallest loss, as those of a learnt
    mixture do: for given parts the best $s_i$ is $\log L_i$, where all parts contribute alike. The value is
    no error to compare between runs: it falls below 0 as the parts shrink.

    A part that reaches 0 would send its weight to infinity. Weights are therefore held between
    ``1 / max_weight`` and ``max_weight``; what $|s_i|$ goes beyond costs as much, which leads it back.

    This object stays as it is; what is learnt is a pytree of its own, for the optimizer to train:
    ``init()`` starts it, and the call takes it as ``params``.

    Attributes:
        losses: the parts, gap losses of logits; kept as a tuple.
        initial_weights: the weights that the parts start with; None for 1 each.
        max_weight: largest weight, and the inverse of the smallest.

    Raises:
        ValueError: no parts, parts that take probabilities, threshold weights or parameters of their own, or
            initial weights that do not fit.

    Source: Kendall, Gal and Cipolla 2018, Multi-Task Learning Using Uncertainty to Weigh Losses,
    arXiv:1705.07115, eq. 10: the classification form, $L_i / \sigma_i^2$ without the half of regression.
    Its cost of a weight there is $\log \sigma_i = s_i / 2$; $s_i$ here is that of a likelihood
    $e^{-L_i / \sigma_i^2} / \sigma_i^2$, whose best weight is $1 / L_i$ instead of $1 / (2 L_i)$.

    >>> loss = AdaptiveLoss((FocalLoss(), DiceLoss()), initial_weights=(4.0, 1.0))
    >>> params = loss.init()
    >>> loss.weights(params).round(4).tolist()
    [4.0, 1.0]
    >>> loss(jnp.zeros((1, 4)), jnp.asarray([[1, 1, 0, 0]]), params=params).shape
    ()
    """

    losses: Sequence[Loss] = (FocalLoss(), DiceLoss())
    initial_weights: Sequence[float] | None = None
    max_weight: float = 1000.0

    learns: ClassVar[bool] = True
    _checked_apart: ClassVar[tuple[str, ...]] = ("losses", "initial_weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "losses", tuple(self.losses))
        if self.initial_weights is not None:
            object.__setattr__(self, "initial_weights", tuple(map(float, self.initial_weights)))
        self._check_parts()
        self._check_weights()

    def init(self) -> dict[str, Float32[Array, " parts"]]:
        """First parameters: ``{"log_variance": [n]}``, the negative logarithms of the initial weights."""
        weights = (1.0,) * len(self.losses) if self.initial_weights is None else self.initial_weights
        return {"log_variance": jnp.asarray(-np.log(weights), jnp.float32)}

    def weights(self, params: Params) -> Float[Array, " parts"]:
        """The weight of each part."""
        return jnp.exp(-self._held(self._log_variance(params)))

    def __call__(
        self,
        logits: Float[Array, "batch ..."],
        targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
        *,
        params: Params | None = None,
        valid: Bool[Array, "batch ..."] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The loss of a batch.

        Args:
            logits: any shape with the batch first; probabilities where ``from_logits`` is False.
            targets: 1 for gap, 0 for not; of the same shape.
            params: what is learnt; None for `init`.
            valid: pixels that count; None for all.
            sample_weight: factor on each sample's terms in all parts.

        Returns:
            A float32 scalar; 0 with zero gradient, also of ``params``, where no pixel is valid.

        Raises:
            ValueError: shapes differ, or a probability lies outside [0, 1].
        """
        logits, targets = self._prepared(logits, targets, valid)
        params = self.init() if params is None else params
        return self._value(logits, targets, valid=valid, sample_weight=sample_weight, params=params)

    def _value(self, logits: Array, targets: Array, *, params: Params, **pixels: Any) -> Float[Array, ""]:
        parts = jnp.stack([loss(logits, targets, **pixels) for loss in self.losses])
        given = self._log_variance(params)
        held = self._held(given)
        beyond = jax.nn.relu(jnp.abs(given) - math.log(self.max_weight))
        value = jnp.sum(jnp.exp(-held) * parts + held + beyond)
        return value if pixels["valid"] is None else jnp.where(jnp.any(pixels["valid"]), value, 0.0)

    def _held(self, log_variance: Float[Array, " parts"]) -> Float[Array, " parts"]:
        limit = math.log(self.max_weight)
        return jnp.clip(log_variance, -limit, limit)

    def _log_variance(self, params: Params) -> Float[Array, " parts"]:
        log_variance = params["log_variance"].astype(jnp.float32)
        if log_variance.shape != (len(self.losses),):
            raise ValueError(
                f"log_variance has shape {log_variance.shape}: must be {(len(self.losses),)}, one for each "
                "loss; start from init()"
            )
        return log_variance

    def _check_parts(self) -> None:
        if not self.losses:
            raise ValueError("losses is empty: give one or more gap losses")
        for part in self.losses:
            if getattr(part, "target", "mask") != "mask" or not getattr(part, "from_logits", True):
                raise ValueError(
                    f"{part}: must be a gap loss of logits; for probabilities set from_logits=False on "
                    "AdaptiveLoss instead"
                )
            if getattr(part, "learns", False) or getattr(part, "needs_threshold", False):
                raise ValueError(
                    f"{part}: must be a plain gap loss; put threshold weights around AdaptiveLoss instead"
                )

    def _check_weights(self) -> None:
        if not 1 < self.max_weight < math.inf:
            raise ValueError(f"max_weight = {self.max_weight}: must be above 1 and finite")
        weights = (1.0,) * len(self.losses) if self.initial_weights is None else self.initial_weights
        if len(weights) != len(self.losses):
            raise ValueError(f"{len(weights)} initial_weights for {len(self.losses)} losses: must be as many")
        if not all(1 / self.max_weight <= weight <= self.max_weight for weight in weights):
            raise ValueError(
                f"initial_weights = {weights}: must be from {1 / self.max_weight:g} to {self.max_weight:g} "
                "(max_weight)"
            )
