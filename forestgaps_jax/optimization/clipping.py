"""Gradient clipping that can say what it saw."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from forestgaps_jax.types import pytree_dataclass


@pytree_dataclass
class GradientStatistics:
    """Global gradient norms before clipping, as a part of the optimizer's state.

    Attributes:
        count: steps with a finite norm.
        not_finite: steps whose norm was infinite or NaN; they enter none of the others but ``last``.
        clipped: finite steps in which clipping changed the gradient.
        mean: running mean of the norm, as a sum would lose the small ones; NaN before the first step.
        max: largest norm.
        min: smallest norm.
        last: norm of the last step, whatever it was.
    """

    count: Int32[Array, ""]
    not_finite: Int32[Array, ""]
    clipped: Int32[Array, ""]
    mean: Float32[Array, ""]
    max: Float32[Array, ""]
    min: Float32[Array, ""]
    last: Float32[Array, ""]

    @staticmethod
    def zeros() -> "GradientStatistics":
        """No step seen."""
        counts = [jnp.zeros((), jnp.int32) for _ in range(3)]
        return GradientStatistics(*counts, *(jnp.full((), jnp.nan, jnp.float32) for _ in range(4)))

    def add(self, norm: Float32[Array, ""], clipped: Array) -> "GradientStatistics":
        """Take a step in."""
        finite = jnp.isfinite(norm)
        known = jnp.where(finite, norm, jnp.nan)
        count = self.count + finite
        before = jnp.where(self.count > 0, self.mean, 0.0)
        return GradientStatistics(
            count=count,
            not_finite=self.not_finite + ~finite,
            clipped=self.clipped + (finite & clipped),
            mean=jnp.where(finite, before + (norm - before) / jnp.maximum(count, 1), self.mean),
            max=jnp.fmax(self.max, known),
            min=jnp.fmin(self.min, known),
            last=norm,
        )


@dataclass(frozen=True)
class GradientClipping:
    """Clips gradients, and records their norm if asked to.

    Args:
        clip_value: largest global norm, or largest absolute entry; None clips nothing and only monitors.
        clip_norm: clip by the global norm; false: clip each entry.
        monitor: keep `GradientStatistics` in the state of `transform`.

    Raises:
        ValueError: a ``clip_value`` that is not above 0.

    Source: Pascanu et al. 2012, On the Difficulty of Training Recurrent Neural Networks, arXiv:1211.5063.

    >>> clipping = GradientClipping(1.0, monitor=True)
    >>> gradients = {"kernel": jnp.array([3.0, 4.0])}
    >>> print(clipping(gradients)["kernel"])
    [0.6 0.8]
    >>> optimizer = optax.chain(clipping.transform(), optax.sgd(0.1))
    >>> _, state = optimizer.update(gradients, optimizer.init(gradients))
    >>> clipping.statistics(state)["max"]
    5.0
    """

    clip_value: float | None = 1.0
    clip_norm: bool = True
    monitor: bool = False

    def __post_init__(self) -> None:
        if self.clip_value is not None and not self.clip_value > 0:
            raise ValueError(f"clip_value = {self.clip_value}: must be above 0, or None to clip nothing")

    def __call__(self, gradients: Any) -> Any:
        """Clipped gradients, of the same structure."""
        clip = self._clip()
        return clip.update(gradients, clip.init(gradients))[0]

    def transform(self) -> optax.GradientTransformation:
        """The same as a part of an `optax.chain`; one that monitors must see the gradients first."""
        if not self.monitor and self.clip_value is not None:
            return self._clip()
        return optax.chain(self._watch(), self._clip())

    @staticmethod
    def statistics(opt_state: Any) -> dict[str, float | int]:
        """What was recorded since the start, or the last `reset`, anywhere inside an optimizer's state.

        Waits for the device. With gradient accumulation the norms are those of the mean gradients.

        Returns:
            ``mean``, ``max``, ``min``, ``last`` (NaN before the first step), ``count``, ``not_finite`` and
            ``clipped``, as `GradientStatistics` tells.

        Raises:
            ValueError: nothing was recorded, or there is more than one record.
        """
        found = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=_is_record) if _is_record(leaf)]
        if len(found) != 1:
            raise ValueError(
                f"the optimizer's state holds {len(found)} gradient records, must be 1: chain one "
                "GradientClipping(..., monitor=True).transform()"
            )
        return {name: value.item() for name, value in vars(jax.device_get(found[0])).items()}

    @staticmethod
    def reset(opt_state: Any) -> Any:
        """The optimizer's state with empty records, to begin an epoch with."""
        empty = GradientStatistics.zeros
        return jax.tree.map(lambda x: empty() if _is_record(x) else x, opt_state, is_leaf=_is_record)

    def _clip(self) -> optax.GradientTransformation:
        if self.clip_value is None:
            return optax.identity()
        return optax.clip_by_global_norm(self.clip_value) if self.clip_norm else optax.clip(self.clip_value)

    def _watch(self) -> optax.GradientTransformation:
        limit = jnp.inf if self.clip_value is None else self.clip_value

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            norm = jnp.asarray(optax.tree.norm(updates), jnp.float32)
            size = norm if self.clip_norm else optax.tree.norm(updates, ord=jnp.inf)
            return updates, state.add(norm, size > limit)

        def init(params: Any) -> Any:
            return GradientStatistics.zeros()

        return optax.GradientTransformation(init, update)


def _is_record(node: Any) -> bool:
    return isinstance(node, GradientStatistics)
