"""A learning rate that falls when a metric makes no progress."""

import re
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from forestgaps_jax.config import Config
from forestgaps_jax.types import pytree_dataclass

_MINIMISED = re.compile(r"(loss|error_rate|mse|mae)(_[\d.]+m)?$")


@pytree_dataclass
class PlateauState:
    """Where a `Plateau` stands.

    Attributes:
        scale: factor on the learning rate.
        best: the best value so far; infinite before the first.
        bad_epochs: epochs in a row without progress.
        cooldown: epochs to go in which nothing counts as bad.
        epochs: epochs seen.
    """

    scale: Float32[Array, ""]
    best: Float32[Array, ""]
    bad_epochs: Int32[Array, ""]
    cooldown: Int32[Array, ""]
    epochs: Int32[Array, ""]


@dataclass(frozen=True)
class Plateau:
    """Lowers a factor on the learning rate when a metric has stopped to improve.

    Multiply the optimizer's updates by ``state.scale``: an array, so nothing compiles again when it falls.
    The rules are those of PyTorch's ``ReduceLROnPlateau`` without its ``eps``, but for one: the relative
    ``threshold`` is a share of the best value's size. In PyTorch and optax it has the sign of the best
    value, so a negative metric that stands still counts as progress for ever.

    Args:
        mode: whether less (``"min"``) or more (``"max"``) is better.
        factor: what the scale is multiplied by, between 0 and 1.
        patience: epochs without progress that are borne. NaN is no progress.
        threshold: least change that counts as progress.
        threshold_mode: ``"rel"``, a share of the best value, or ``"abs"``, a difference from it.
        cooldown: epochs after a reduction that do not count as bad.
        min_scale: the lowest scale.
        warmup_epochs: epochs that began before this many were over count for nothing.

    Raises:
        ValueError: a value that makes no sense.

    >>> plateau = Plateau("min", patience=1)
    >>> state = plateau.init()
    >>> for loss in (1.0, 0.8, 0.9, 0.8):
    ...     state = plateau.update(state, loss)
    >>> print(f"{state.scale:.2f}")
    0.10
    """

    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_scale: float = 0.0
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("mode", ("min", "max")), ("threshold_mode", ("rel", "abs"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be one of {allowed}")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor = {self.factor}: must be between 0 and 1")
        if not 0 <= self.min_scale <= 1:
            raise ValueError(f"min_scale = {self.min_scale}: must be from 0 to 1")
        for name in ("patience", "threshold", "cooldown", "warmup_epochs"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")

    def init(self) -> PlateauState:
        """The state before the first epoch: the learning rate as it is."""
        worst = jnp.inf if self.mode == "min" else -jnp.inf
        bad, cooldown, epochs = (jnp.zeros((), jnp.int32) for _ in range(3))
        return PlateauState(jnp.ones((), jnp.float32), jnp.asarray(worst, jnp.float32), bad, cooldown, epochs)

    def update(self, state: PlateauState, value: jax.typing.ArrayLike) -> PlateauState:
        """The state after an epoch that ended with this value of the metric, a scalar."""
        value = jnp.asarray(value, jnp.float32)
        if value.shape:
            raise ValueError(f"the metric has shape {value.shape}: must be one number")
        counts = state.epochs >= self.warmup_epochs
        better = counts & self._better(value, state.best)
        bad = jnp.where(better | ~counts | (state.cooldown > 0), 0, state.bad_epochs + 1)
        reduce = bad > self.patience
        lower = jnp.maximum(state.scale * self.factor, self.min_scale)
        return PlateauState(
            scale=jnp.where(reduce, lower, state.scale),
            best=jnp.where(better, value, state.best),
            bad_epochs=jnp.where(reduce, 0, bad),
            cooldown=jnp.where(reduce, self.cooldown, jnp.maximum(state.cooldown - 1, 0)),
            epochs=state.epochs + 1,
        )

    def _better(self, value: Array, best: Array) -> Bool[Array, ""]:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "abs":
            bar = best + sign * self.threshold
        else:  # this form keeps an infinite best infinite
            bar = best * (1 + sign * jnp.sign(best) * self.threshold)
        return value > bar if self.mode == "max" else value < bar


def create_plateau(config: Config) -> Plateau | None:
    """The `Plateau` of ``config``; None where ``scheduler_type`` follows no metric.

    >>> plateau = create_plateau(Config(scheduler_type="plateau", monitor_metric="val_loss"))
    >>> plateau.mode, plateau.min_scale
    ('min', 0.001)
    """
    if config.scheduler_type not in ("plateau", "warmup_plateau"):
        return None
    modes = (config.plateau_mode, config.monitor_mode, metric_mode(config.monitor_metric))
    return Plateau(
        mode=next(mode for mode in modes if mode != "auto"),
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        threshold=config.plateau_threshold,
        threshold_mode=config.plateau_threshold_mode,
        cooldown=config.plateau_cooldown,
        min_scale=config.min_lr / config.learning_rate,
        warmup_epochs=config.warmup_epochs if config.scheduler_type == "warmup_plateau" else 0.0,
    )


def metric_mode(name: str) -> Literal["min", "max"]:
    """Whether less or more of a metric is better, by the end of its name.

    Less of what ends with ``loss``, ``error_rate``, ``mse`` or ``mae``, for all thresholds or for one; more
    of all else.

    >>> metric_mode("val_rmse"), metric_mode("val_error_rate_2.5m"), metric_mode("val_iou")
    ('min', 'min', 'max')
    """
    return "min" if _MINIMISED.search(name) else "max"
