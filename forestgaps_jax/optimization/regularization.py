"""Against overfitting: stochastic depth over the training, and what a model takes on top."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.config import Config
from forestgaps_jax.layers import AdaptiveNorm, DropPath
from forestgaps_jax.optimization.clipping import GradientClipping
from forestgaps_jax.optimization.optimizers import kernel_mask
from forestgaps_jax.optimization.spectral import convolutions, normalize_kernel

__all__ = [
    "AdaptiveNorm",
    "CompositeRegularization",
    "DropPath",
    "GradientClipping",
    "drop_path_rates",
    "drop_path_schedule",
]

_STEEPNESS = 5.0
"""Of the exponential rise: half of the way is made in the last seventh of the time."""

_DROPOUT = 0.1


def drop_path_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """Chance to skip the deepest branch, by batch: it grows over the first 80% of the training's batches.

    From ``droppath_start_prob`` to ``droppath_final_prob``, then constant. With ``p`` the share of that time,
    the share of the way is ``p`` (linear), ``(1 - cos(pi p)) / 2`` (cosine) or
    ``(e^(5p) - 1) / (e^5 - 1)`` (exp).

    Args:
        config: the rates, ``droppath_strategy`` and ``epochs``; whether they are used, ``use_droppath``,
            is for the caller to look at.
        steps_per_epoch: batches in an epoch.

    Raises:
        ValueError: fewer than one batch in an epoch.

    >>> schedule = drop_path_schedule(Config(epochs=10, droppath_final_prob=0.2), 5)
    >>> [round(float(schedule(batch)), 3) for batch in (0, 20, 40, 50)]
    [0.0, 0.1, 0.2, 0.2]
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch = {steps_per_epoch}: must be 1 or more")
    length = 4 * config.epochs * steps_per_epoch / 5
    start, final, shape = config.droppath_start_prob, config.droppath_final_prob, config.droppath_strategy

    def schedule(batch: Any) -> Any:
        way = _RISES[shape](jnp.clip(batch / length, 0.0, 1.0))
        return (1.0 - way) * start + way * final  # exact at both ends

    return schedule


def drop_path_rates(final: float, n: int) -> tuple[float, ...]:
    """Rates of ``n`` blocks from the first to the deepest: ``final * (i + 1) / n``.

    Raises:
        ValueError: no block, or a rate that is no probability.

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382.

    >>> drop_path_rates(0.2, 4)
    (0.05, 0.1, 0.15000000000000002, 0.2)
    """
    if n < 1 or not 0 <= final <= 1:
        raise ValueError(f"final = {final}, n = {n}: must be a rate from 0 to 1, and 1 block or more")
    return tuple(final * (i + 1) / n for i in range(n))


@dataclass(frozen=True, eq=False)
class CompositeRegularization:
    """Puts regularisation on an nnx model, in place, and gives what belongs into its training step.

    The rates of the model are replaced by those given here. An option that the model has no place for is
    refused.

    Args:
        model: its ``nnx.Dropout`` modules, its modules with a ``drop_path_rate`` and its convolutions change.
        dropout_rate: of every ``nnx.Dropout``. Left out: 0.1, where the model has any.
        weight_decay: for `weight_decay_transform`.
        drop_path_rate: chance to skip a residual branch.
        label_smoothing: for `smooth_labels`.
        stochastic_depth: the deepest block has ``drop_path_rate`` and the others less: by the ``share`` of
            the model's blocks, or where they have none, evenly in the order of the model's paths. False: all
            have the same rate.
        spectral_norm: divide the kernel of every convolution by its largest singular value.
        auxiliary_loss: for `penalty`: ``auxiliary_loss(params) -> scalar``.

    Raises:
        ValueError: a rate that is none, or an option that the model has no place for.

    >>> model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5))
    >>> regularization = CompositeRegularization(model, dropout_rate=0.2, label_smoothing=0.1)
    >>> model.layers[1].rate
    0.2
    >>> optimizer = optax.chain(
    ...     optax.scale_by_adam(), regularization.weight_decay_transform(), optax.scale_by_learning_rate(1e-3)
    ... )
    >>> print(regularization.smooth_labels(jnp.array([0.0, 1.0])))
    [0.05 0.95]
    """

    model: nnx.Module = field(repr=False)
    dropout_rate: float | None = None
    weight_decay: float = 1e-4
    drop_path_rate: float = 0.0
    label_smoothing: float = 0.0
    stochastic_depth: bool = False
    spectral_norm: bool = False
    auxiliary_loss: Callable[[Any], Float[Array, ""]] | None = None

    def __post_init__(self) -> None:
        for name in ("dropout_rate", "label_smoothing"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be from 0 to below 1")
        if not 0 <= self.drop_path_rate <= 1:
            raise ValueError(f"drop_path_rate = {self.drop_path_rate}: must be from 0 to 1")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay = {self.weight_decay}: must be 0 or more")
        if self.stochastic_depth and not self.drop_path_rate:
            raise ValueError("stochastic_depth spreads drop_path_rate = 0: give a rate above 0")
        self._apply()

    decay_mask = staticmethod(kernel_mask)

    def weight_decay_transform(self) -> optax.GradientTransformation:
        """Decoupled decay of the kernels: chain it after the optimizer's direction, before the rate."""
        return optax.add_decayed_weights(self.weight_decay, self.decay_mask)

    def smooth_labels(self, targets: Float[Array, "..."]) -> Float[Array, "..."]:
        """Binary targets moved by the share ``label_smoothing`` towards one half."""
        return targets * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing

    def penalty(self, params: Any) -> Float[Array, ""]:
        """The auxiliary loss, to be added to the loss; 0 without one.

        Raises:
            ValueError: it is no scalar.
        """
        value = jnp.asarray(self.auxiliary_loss(params) if self.auxiliary_loss else 0.0)
        if value.shape:
            raise ValueError(f"auxiliary_loss gives shape {value.shape}: must be a scalar")
        return value

    def _apply(self) -> None:
        modules: list[Any] = [module for _, module in nnx.iter_modules(self.model)]
        dropouts = [module for module in modules if isinstance(module, nnx.Dropout)]
        paths = [module for module in modules if hasattr(module, "drop_path_rate")]
        shares = [module for module in modules if hasattr(module, "share")]
        # All that can be refused comes before the first change.
        if self.dropout_rate and not dropouts:
            raise ValueError(
                f"dropout_rate = {self.dropout_rate}: the model has no nnx.Dropout; "
                "build one into it, or leave dropout_rate out"
            )
        if self.drop_path_rate and not paths:
            raise ValueError(
                f"drop_path_rate = {self.drop_path_rate}: no module of the model has a drop_path_rate; "
                "build residual blocks with one into it, or leave drop_path_rate out"
            )
        for layer in convolutions(self.model) if self.spectral_norm else ():
            normalize_kernel(layer)
        for module in modules if self.spectral_norm else ():
            if isinstance(getattr(module, "spectral_norm", None), bool):
                module.spectral_norm = True
        for module in dropouts:
            module.rate = _DROPOUT if self.dropout_rate is None else self.dropout_rate
        for module, rate in zip(paths, self._drop_path_rates(len(paths), bool(shares)), strict=True):
            module.drop_path_rate = rate
        for block in shares if self.drop_path_rate and not self.stochastic_depth else ():
            block.share = 1.0

    def _drop_path_rates(self, n: int, shared: bool) -> tuple[float, ...]:
        grows = self.stochastic_depth and not shared
        return drop_path_rates(self.drop_path_rate, n) if grows else (self.drop_path_rate,) * n


_RISES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda p: p,
    "cosine": lambda p: 0.5 * (1.0 - jnp.cos(jnp.pi * p)),
    "exp": lambda p: jnp.expm1(_STEEPNESS * p) / jnp.expm1(_STEEPNESS),
}
