"""Losses of canopy height."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from forestgaps_jax.loss.base import Weight, check_settings
from forestgaps_jax.loss.inputs import mask_invalid
from forestgaps_jax.loss.reduction import mean_over_valid
from forestgaps_jax.settings import NotNegative, Positive


def mse_loss(
    predictions: Float[Array, "batch ..."],
    targets: Float[Array, "batch ..."],
    *,
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    pixel_weight: Float[Array, "batch ..."] | None = None,
) -> Float[Array, ""]:
    """Mean squared error over the valid pixels, m².

    Args:
        predictions: canopy heights (m), any shape with the batch first.
        targets: true heights (m), of the same shape.
        valid: pixels that count; None for all.
        sample_weight: factor on each sample's terms.
        pixel_weight: factor on each pixel's terms; the sum is divided by the number of valid pixels, not by
            their weights.

    Returns:
        A float32 scalar; 0 with zero gradient where no pixel is valid.

    Raises:
        ValueError: shapes differ.

    >>> mse_loss(jnp.asarray([[1.0, 5.0]]), jnp.asarray([[2.0, 2.0]])).item()
    5.0
    """
    errors, pixels = _errors(predictions, targets, valid)
    return _mean(optax.losses.squared_error(errors), pixels, sample_weight, pixel_weight)


def mae_loss(
    predictions: Float[Array, "batch ..."],
    targets: Float[Array, "batch ..."],
    *,
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    pixel_weight: Float[Array, "batch ..."] | None = None,
) -> Float[Array, ""]:
    """Mean absolute error over the valid pixels, m; arguments, result and errors are those of `mse_loss`.

    >>> mae_loss(jnp.asarray([[1.0, 5.0]]), jnp.asarray([[2.0, 2.0]])).item()
    2.0
    """
    errors, pixels = _errors(predictions, targets, valid)
    return _mean(_absolute(errors), pixels, sample_weight, pixel_weight)


def huber_loss(
    predictions: Float[Array, "batch ..."],
    targets: Float[Array, "batch ..."],
    *,
    delta: float = 1.0,
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    pixel_weight: Float[Array, "batch ..."] | None = None,
) -> Float[Array, ""]:
    """Half the squared error up to ``delta`` metres, from there linear with slope ``delta``; a mean, m².

    The other arguments and the result are those of `mse_loss`.

    Raises:
        ValueError: shapes differ, or ``delta`` is not above 0.

    Source: Huber 1964, Robust Estimation of a Location Parameter. PyTorch's SmoothL1Loss is this divided by
    ``delta``.

    >>> huber_loss(jnp.asarray([[1.0, 5.0]]), jnp.asarray([[2.0, 2.0]]), delta=1.0).item()  # (0.5 + 2.5) / 2
    1.5
    """
    if not delta > 0:
        raise ValueError(f"delta = {delta}: must be above 0")
    errors, pixels = _errors(predictions, targets, valid)
    return _mean(optax.losses.huber_loss(errors, delta=delta), pixels, sample_weight, pixel_weight)


def combined_regression_loss(
    predictions: Float[Array, "batch ..."],
    targets: Float[Array, "batch ..."],
    *,
    mse_weight: Weight = 0.5,
    mae_weight: Weight = 0.5,
    valid: Bool[Array, "batch ..."] | None = None,
    sample_weight: Float[Array, " batch"] | None = None,
    pixel_weight: Float[Array, "batch ..."] | None = None,
) -> Float[Array, ""]:
    """``mse_weight * mse_loss + mae_weight * mae_loss``, half and half as in forestgaps.

    The squares (m²) pull most on large errors, and the absolute values (m) go on pulling on small ones.
    The other arguments, the result and the errors are those of `mse_loss`.

    >>> combined_regression_loss(jnp.asarray([[1.0, 5.0]]), jnp.asarray([[2.0, 2.0]])).item()
    3.5
    """
    errors, pixels = _errors(predictions, targets, valid)
    values = mse_weight * optax.losses.squared_error(errors) + mae_weight * _absolute(errors)
    return _mean(values, pixels, sample_weight, pixel_weight)


def _errors(
    predictions: Array, targets: Array, valid: Array | None
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
    predictions, targets, pixels = mask_invalid(predictions, targets, valid, name="predictions")
    return predictions - targets, pixels


def _absolute(errors: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    # The slope of jnp.abs at 0 is 1: exact heights would be pulled down.
    return errors * jax.lax.stop_gradient(jnp.sign(errors))


def _mean(
    values: Array, pixels: Array, sample_weight: Array | None, pixel_weight: Array | None
) -> Float[Array, ""]:
    if pixel_weight is not None:
        if pixel_weight.shape != values.shape:
            raise ValueError(f"pixel_weight has shape {pixel_weight.shape}: must be {values.shape}")
        values = values * jnp.where(pixels > 0, pixel_weight.astype(jnp.float32), 0)
    return mean_over_valid(values, pixels, sample_weight)


@dataclass(frozen=True)
class RegressionLoss(ABC):
    """A loss of predicted canopy heights against the true ones."""

    target: ClassVar[str] = "chm"
    learns: ClassVar[bool] = False
    needs_threshold: ClassVar[bool] = False
    arguments: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(
        self,
        predictions: Float[Array, "batch ..."],
        targets: Float[Array, "batch ..."],
        *,
        valid: Bool[Array, "batch ..."] | None = None,
        sample_weight: Float[Array, " batch"] | None = None,
        pixel_weight: Float[Array, "batch ..."] | None = None,
    ) -> Float[Array, ""]:
        """The loss of a batch; arguments, result and errors are those of `mse_loss`."""
        pixels = {"valid": valid, "sample_weight": sample_weight, "pixel_weight": pixel_weight}
        return self._value(predictions, targets, **pixels)

    @abstractmethod
    def _value(self, predictions: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        """The loss; ``pixels`` are ``valid``, ``sample_weight`` and ``pixel_weight``."""


@dataclass(frozen=True)
class MSELoss(RegressionLoss):
    """`mse_loss` as an object beside the others."""

    def _value(self, predictions: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return mse_loss(predictions, targets, **pixels)


@dataclass(frozen=True)
class MAELoss(RegressionLoss):
    """`mae_loss` as an object beside the others."""

    def _value(self, predictions: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return mae_loss(predictions, targets, **pixels)


@dataclass(frozen=True)
class HuberLoss(RegressionLoss):
    """`huber_loss` with its settings fixed: ``delta`` (m) above 0."""

    delta: Positive = 1.0

    def _value(self, predictions: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return huber_loss(predictions, targets, delta=self.delta, **pixels)


@dataclass(frozen=True)
class CombinedRegressionLoss(RegressionLoss):
    """`combined_regression_loss` with its settings fixed: weights of 0 or more."""

    mse_weight: NotNegative = 0.5
    mae_weight: NotNegative = 0.5

    arguments: ClassVar[tuple[str, ...]] = ("mse_weight", "mae_weight")

    def _value(self, predictions: Array, targets: Array, **pixels: Any) -> Float[Array, ""]:
        return combined_regression_loss(
            predictions, targets, mse_weight=self.mse_weight, mae_weight=self.mae_weight, **pixels
        )
