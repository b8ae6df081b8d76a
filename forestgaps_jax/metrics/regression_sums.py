"""Errors of predicted canopy heights, from sums that float32 does not spoil."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from forestgaps_jax.metrics.counter import ExactCounter, check_countable
from forestgaps_jax.types import pytree_dataclass

_SUMS = 5
_SMALLEST_SPREAD = 4 * float(np.finfo(np.float32).eps)  # of the mean height: rounding alone


@pytree_dataclass
class RegressionSums:
    """Sums over pixels of errors and true heights, in ``groups`` rows (one a height threshold).

    The sums are those of the error, its absolute value, its square, the true height, and the squares of its
    distance from its mean. Each is a float32 with a second one for what rounding took from it (Knuth's
    two-sum); spreads about means are merged as in Chan, Golub and LeVeque (1983).

    >>> sums = RegressionSums.zeros(1).update(jnp.array([[1.0, 5.0]]), jnp.array([[2.0, 4.0]]))
    >>> regression_metrics(sums)["mse"]
    1.0

    Attributes:
        pixels: pixels counted.
        sums: the sums, metres or square metres.
        lost: what is to be added to them.
    """

    pixels: ExactCounter
    sums: Float32[Array, "groups 5"]
    lost: Float32[Array, "groups 5"]

    @staticmethod
    def zeros(groups: int) -> "RegressionSums":
        """Nothing added yet."""
        return RegressionSums(
            ExactCounter.zeros(groups), jnp.zeros((groups, _SUMS)), jnp.zeros((groups, _SUMS))
        )

    def update(
        self,
        predictions: Float[Array, "batch ..."],
        targets: Float[Array, "batch ..."],
        *,
        group: Int[Array, " batch"] | None = None,
        valid: Bool[Array, "batch ..."] | None = None,
    ) -> "RegressionSums":
        """Add a batch.

        Args:
            predictions: canopy heights, metres.
            targets: true canopy heights, metres.
            group: the row that each sample belongs to; None for the first.
            valid: pixels that count; None for all.

        Raises:
            ValueError: shapes differ, or the batch has 2^32 pixels or more.
        """
        check_countable("predictions", predictions, targets=targets, valid=valid)
        if group is None:
            group = jnp.zeros(len(targets), jnp.int32)
        counted = jnp.ones(targets.shape, bool) if valid is None else valid
        heights = targets.astype(jnp.float32)
        error = predictions.astype(jnp.float32) - heights
        by_group = partial(_sum_by_group, counted=counted, group=group, groups=len(self.sums))
        pixels = by_group(counted, dtype=jnp.uint32)
        height = by_group(heights)
        count = jnp.maximum(pixels.astype(jnp.float32), 1)
        mean = height / count
        distance = heights - mean[group].reshape(-1, *(1,) * (heights.ndim - 1))
        sums = [by_group(x) for x in (error, jnp.abs(error), error**2)]
        spread = by_group(distance**2) - by_group(distance) ** 2 / count  # the mean was rounded
        sums = jnp.stack([*sums, height, jnp.maximum(spread, 0)], axis=1)
        counter = ExactCounter(pixels, jnp.zeros_like(pixels))
        return self.merge(RegressionSums(counter, sums, jnp.zeros_like(sums)))

    def merge(self, other: "RegressionSums") -> "RegressionSums":
        """Add the sums of another, row by row."""
        (n, mean), (other_n, other_mean) = _count_and_mean(self), _count_and_mean(other)
        share = n / jnp.maximum(n + other_n, 1)
        between = (other_mean - mean) ** 2 * share * other_n
        added = other.sums.at[:, -1].add(between)
        total = self.sums + added
        shift = total - self.sums
        rounding = (self.sums - (total - shift)) + (added - shift)
        return RegressionSums(self.pixels.merge(other.pixels), total, self.lost + other.lost + rounding)

    def to_numpy(self) -> Float[np.ndarray, "groups 6"]:
        """Pixels and the five sums as float64; waits for the device."""
        sums = np.asarray(self.sums, np.float64) + np.asarray(self.lost, np.float64)
        return np.concatenate([self.pixels.to_numpy()[:, None], sums], axis=1)


def regression_metrics(sums: RegressionSums | Float[np.ndarray, "*groups 6"]) -> dict[str, float]:
    """Errors of the heights, from sums on the device or what their ``to_numpy`` gives; rows are added up.

    Returns:
        ``mse`` (m²), ``rmse``, ``mae``, ``bias`` (mean of prediction less truth; m), ``r2`` (share of the
        true heights' variance that is explained, Nash-Sutcliffe) and ``n_pixels``. NaN without pixels;
        ``r2`` also where all true heights are the same.
    """
    rows = sums.to_numpy() if isinstance(sums, RegressionSums) else np.asarray(sums, np.float64)
    rows = rows.reshape(-1, _SUMS + 1)
    rows = rows[rows[:, 0] > 0]
    if not len(rows):
        return dict.fromkeys(("mse", "rmse", "mae", "r2", "bias"), math.nan) | {"n_pixels": 0.0}
    n, error, absolute, square, height, spread = (float(x) for x in rows.sum(axis=0))
    spread += float(np.sum(rows[:, 0] * (rows[:, 4] / rows[:, 0] - height / n) ** 2))
    constant = math.sqrt(spread / n) <= _SMALLEST_SPREAD * abs(height / n)
    return {
        "mse": square / n,
        "rmse": math.sqrt(square / n),
        "mae": absolute / n,
        "r2": math.nan if constant else 1 - square / spread,
        "bias": error / n,
        "n_pixels": n,
    }


def _sum_by_group(
    values: Array, *, counted: Array, group: Array, groups: int, dtype: Any = jnp.float32
) -> Array:
    each = jnp.sum(values, axis=tuple(range(1, values.ndim)), where=counted, dtype=dtype)
    return jax.ops.segment_sum(each, group, num_segments=groups)


def _count_and_mean(sums: RegressionSums) -> tuple[Float[Array, " groups"], Float[Array, " groups"]]:
    """Pixels, and the mean true height."""
    n = sums.pixels.low.astype(jnp.float32) + 2.0**32 * sums.pixels.high.astype(jnp.float32)
    return n, (sums.sums[:, 3] + sums.lost[:, 3]) / jnp.maximum(n, 1)
