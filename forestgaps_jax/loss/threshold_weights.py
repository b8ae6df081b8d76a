"""How much each height threshold weighs: the rarer its gaps, the more."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from forestgaps_jax.config import Config

LARGEST_FACTOR = 4.0
"""How far a weight may be from the geometric mean of them all."""


def create_threshold_weights(
    config: Config, stats: Mapping[float, float | Mapping[str, Any]]
) -> dict[float, float]:
    """Weights of ``config.thresholds``, of mean 1, from how much gap there is below each.

    A weight is the inverse of the share of gap pixels, held within a factor of 4 of their geometric mean,
    so that a share of 0 gives the largest weight and no single threshold takes over. A threshold whose
    share is not known (NaN) weighs 1. Then ``config.threshold_weight_adjustment`` multiplies, and the mean
    is made 1 again.

    Args:
        config: gives the thresholds and the adjustment.
        stats: of each threshold (m) the share of gap pixels in the training data, from 0 to 1, or a mapping
            that has it as ``"gap_ratio"``, such as ``metrics["threshold_metrics"]`` of `evaluate`. Further
            thresholds do not matter.

    Raises:
        ValueError: a threshold without share, a share outside [0, 1], or settings that do not fit together.
        TypeError: a share that is no number.

    >>> weights = create_threshold_weights(Config(thresholds=(5.0, 10.0)), {5.0: 0.1, 10.0: 0.3})
    >>> {threshold: round(weight, 3) for threshold, weight in weights.items()}
    {5.0: 1.5, 10.0: 0.5}
    """
    config.validate()
    if missing := [threshold for threshold in config.thresholds if threshold not in stats]:
        raise ValueError(
            f"stats lack the thresholds {missing}: must give the share of gap pixels for each of "
            f"{list(config.thresholds)}; NaN where it is not known"
        )
    weights = _inverse(np.asarray([_gap_share(t, stats[t]) for t in config.thresholds]))
    weights *= [config.threshold_weight_adjustment.get(t, 1.0) for t in config.thresholds]
    return dict(zip(config.thresholds, (weights / weights.mean()).tolist(), strict=True))


def _gap_share(threshold: float, given: Any) -> float:
    if isinstance(given, Mapping):
        if "gap_ratio" not in given:
            raise ValueError(f"stats of {threshold:g} m have no 'gap_ratio', only {list(given)}")
        given = given["gap_ratio"]
    if not isinstance(given, Real):
        raise TypeError(f"stats of {threshold:g} m are {given!r}: must be a number from 0 to 1")
    share = float(given)
    if not (0 <= share <= 1 or math.isnan(share)):
        raise ValueError(f"share of gap pixels below {threshold:g} m = {share}: must be from 0 to 1")
    return share


def _inverse(shares: Float[np.ndarray, " thresholds"]) -> Float[np.ndarray, " thresholds"]:
    """Inverse shares with mean 1, held around their geometric mean; 1 where a share is NaN."""
    with np.errstate(divide="ignore"):
        log_inverse = -np.log(shares)
    finite = log_inverse[np.isfinite(log_inverse)]
    limit = np.log(LARGEST_FACTOR)
    weights = np.exp(np.clip(log_inverse - (finite.mean() if finite.size else 0.0), -limit, limit))
    known = ~np.isnan(weights)
    return np.where(known, weights / weights[known].mean() if known.any() else 1.0, 1.0)
