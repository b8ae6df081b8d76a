"""Confusion counts of predictions that a user gives, on the device until they are asked for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Bool, Float, Shaped

from forestgaps_jax.metrics.confusion import ConfusionCounts, threshold_index
from forestgaps_jax.metrics.pixels import as_heights, on_host, same_shape, unlisted
from forestgaps_jax.types import pytree_dataclass

_ROUNDING = 1e-4
"""How far blended probabilities may be out of their range."""


@pytree_dataclass
class Tally:
    """Counts, and what was wrong with the arrays on the device that were counted.

    Attributes:
        counts: a row a listed threshold, and one for others.
        lowest: lowest prediction in a valid pixel, infinity before the first; NaN where there was a NaN.
        highest: highest likewise, before the first minus infinity.
        bad_target: whether a target was neither 0 nor 1.
        unlisted: whether a height threshold was not listed.
    """

    counts: ConfusionCounts
    lowest: Float[Array, ""]
    highest: Float[Array, ""]
    bad_target: Bool[Array, ""]
    unlisted: Bool[Array, ""]

    @staticmethod
    def zeros(groups: int = 1) -> "Tally":
        """Nothing counted yet."""
        return Tally(
            ConfusionCounts.zeros(groups),
            jnp.full((), jnp.inf),
            jnp.full((), -jnp.inf),
            jnp.zeros((), bool),
            jnp.zeros((), bool),
        )


def add(
    tally: Tally,
    predictions: Any,
    targets: Any,
    valid: Any = None,
    *,
    cut: float = 0.5,
    from_logits: bool = False,
    threshold_value: Any = None,
    thresholds: tuple[float, ...] = (),
) -> Tally:
    """Count a batch; what is on the device is not waited for.

    Arrays of the host are checked now, those of the device as they are counted (see `check`).

    Args:
        tally: of ``len(thresholds) + 1`` rows.
        predictions: probabilities, logits or booleans, ``[batch, height, width]`` with or without a channel.
        targets: 1 (or True) where there is gap, else 0.
        valid: pixels that count, not 0 there; None for all.
        cut: probability above which gap is predicted.
        from_logits: predictions are logits.
        threshold_value: height threshold of all or of each sample, where there is a list.
        thresholds: the listed heights.

    Raises:
        ValueError: shapes that differ or do not fit, values out of range, a height that is not listed.
    """
    predictions, targets, valid = same_shape(predictions=predictions, targets=targets, valid=valid)
    heights = as_heights(threshold_value, predictions.shape[0], thresholds) if thresholds else None
    level = check_cut(cut, from_logits)
    if on_host(predictions, targets, valid):
        check_values(*_value_range(predictions, targets, valid), from_logits=from_logits)
        predictions, targets = _cut(predictions, level), targets != 0
        valid = None if valid is None else valid != 0
    # Put there by name: what moves to the device unasked is what a transfer guard looks for.
    arrays = [jax.device_put(x) if isinstance(x, np.ndarray) else x for x in (predictions, targets, valid)]
    heights = jax.device_put(heights) if isinstance(heights, np.ndarray) else heights
    return _count(tally, *arrays, heights, level=level, thresholds=thresholds)


@partial(jax.jit, static_argnames=("level", "thresholds"))
def _count(
    tally: Tally,
    predictions: Shaped[Array, "batch height width"],
    targets: Shaped[Array, "batch height width"],
    valid: Shaped[Array, "batch height width"] | None,
    heights: Float[Array, " batch"] | None,
    *,
    level: float,
    thresholds: tuple[float, ...],
) -> Tally:
    lowest, highest, bad_target = _value_range(predictions, targets, valid)
    group = jnp.zeros(len(targets), jnp.int32) if heights is None else threshold_index(heights, thresholds)
    counts = tally.counts.update(
        _cut(predictions, level), targets != 0, group=group, valid=None if valid is None else valid != 0
    )
    strange = jnp.any(group == len(thresholds)) if thresholds else jnp.zeros((), bool)
    return Tally(
        counts,
        jnp.minimum(tally.lowest, lowest),
        jnp.maximum(tally.highest, highest),
        tally.bad_target | bad_target,
        tally.unlisted | strange,
    )


def check_cut(cut: float, from_logits: bool = False) -> float:
    """The level that predictions must be above, from a probability.

    Raises:
        ValueError: not a probability.
    """
    if not isinstance(cut, int | float | np.number) or not 0 <= cut <= 1:
        raise ValueError(
            f"threshold = {cut!r}: must be from 0 to 1, it cuts probabilities; heights are threshold_value"
        )
    return float(scipy.special.logit(cut)) if from_logits else float(cut)


def check(tally: Tally, from_logits: bool = False, thresholds: tuple[float, ...] = ()) -> None:
    """Refuse a tally, already on the host, that counted what cannot be counted.

    Raises:
        ValueError: says what it was.
    """
    check_values(tally.lowest, tally.highest, tally.bad_target, from_logits=from_logits)
    if tally.unlisted:
        raise ValueError(unlisted(thresholds))


def check_values(lowest: Any, highest: Any, bad_target: Any, *, from_logits: bool) -> None:
    """Refuse predictions and targets out of range.

    Raises:
        ValueError: logits for probabilities, NaN, or targets that are neither 0 nor 1.
    """
    found = f"predictions run from {float(lowest):.4g} to {float(highest):.4g} in valid pixels"
    if np.isnan(lowest) or np.isnan(highest):
        raise ValueError(f"{found}: NaN predicts nothing; leave such pixels out by valid")
    if not from_logits and not (lowest >= -_ROUNDING and highest <= 1 + _ROUNDING):
        raise ValueError(f"{found}: must be probabilities, from 0 to 1; for logits give from_logits=True")
    if bad_target:
        raise ValueError("targets hold other values than 1 for gap and 0 for not in valid pixels")


def _cut(predictions: Any, level: float) -> Any:
    if predictions.dtype == bool:
        return predictions
    return (predictions.astype(jnp.float32) if isinstance(predictions, jax.Array) else predictions) > level


def _value_range(predictions: Any, targets: Any, valid: Any) -> tuple[Any, Any, Any]:
    """Lowest and highest valid prediction, and whether a valid target is neither 0 nor 1."""
    host = on_host(predictions, targets, valid)
    xp, values = (np, predictions.astype(float)) if host else (jnp, predictions.astype(jnp.float32))
    counted = xp.ones(targets.shape, bool) if valid is None else valid != 0
    bad_target = xp.any(counted & (targets != 0) & (targets != 1))
    lowest = xp.min(values, initial=np.inf, where=counted)
    return lowest, xp.max(values, initial=-np.inf, where=counted), bad_target
