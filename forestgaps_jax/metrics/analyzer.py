"""How the metrics change with the height threshold."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from forestgaps_jax.metrics.classification import ThresholdMetrics

_ERRORS = {"error_rate", "mse", "rmse", "mae"}
_NO_SCORES = {"n_samples", "n_pixels", "gap_ratio", "gap_proportion", "best_cut", "bias"}
_NO_CHANGE = 0.01  # of the mean
_NO_CORRELATION = 0.5


class MetricAnalyzer:
    """Looks for the best threshold and for trends over the thresholds; NaN counts nowhere.

    Args:
        metrics: a `ThresholdMetrics`, what its ``compute`` gives, or the metrics of `evaluate`.

    >>> analyzer = MetricAnalyzer({5.0: {"f1": 0.6}, 10.0: {"f1": 0.8}, 15.0: {"f1": 0.75}})
    >>> analyzer.find_best_threshold("f1")
    (10.0, 0.8)
    >>> analyzer.get_summary()["trends"]["f1"]["direction"]
    'increasing'

    Attributes:
        rows: ``{height: metrics}``, by rising height.

    Raises:
        ValueError: there is no threshold.
        TypeError: none of these.
    """

    def __init__(self, metrics: ThresholdMetrics | Mapping[Any, Any]):
        given: Any = metrics.compute() if isinstance(metrics, ThresholdMetrics) else metrics
        rows = given.get("threshold_metrics", given) if isinstance(given, Mapping) else None
        if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
            raise TypeError(
                f"metrics of type {type(metrics).__name__}: must be a ThresholdMetrics, "
                "{height: metrics}, or metrics with the key 'threshold_metrics'"
            )
        if not rows:
            raise ValueError("there are no metrics per threshold: no sample was counted")
        self.rows = {float(height): dict(rows[height]) for height in sorted(rows, key=float)}

    def find_best_threshold(self, metric: str = "f1") -> tuple[float, float]:
        """The height threshold with the best value, and that value; the lower of equals, NaN for none.

        Losses and errors are best where they are least, all else where it is most.

        Raises:
            ValueError: no such metric; names the nearest.
        """
        heights, values = self._defined(metric)
        if not len(heights):
            return math.nan, math.nan
        best = int(np.argmin(values) if _is_error(metric) else np.argmax(values))
        return float(heights[best]), float(values[best])

    def get_summary(self) -> dict[str, dict[str, Any]]:
        """Best thresholds, means and trends of all metrics.

        Returns:
            ``"best_thresholds"``: ``{metric: (height, value)}`` of the scores;
            ``"avg_metrics"``: ``{metric: mean}`` over the thresholds where it is defined;
            ``"trends"``: ``{metric: {"slope", "correlation", "direction"}}`` of those that are defined at two
            thresholds or more: the slope of the least-squares line, per metre; Pearson's correlation with
            the height (NaN for a constant); and ``"increasing"``, ``"decreasing"``, or ``"stable"`` where
            the line changes by less than 1% of the mean, or the correlation is below 0.5.
        """
        names = self._names()
        return {
            "best_thresholds": {
                name: self.find_best_threshold(name) for name in names if name not in _NO_SCORES
            },
            "avg_metrics": {name: _mean(self._defined(name)[1]) for name in names},
            "trends": {
                name: _trend(*defined) for name in names if len((defined := self._defined(name))[0]) > 1
            },
        }

    def _names(self) -> list[str]:
        names = {name: None for row in self.rows.values() for name, value in row.items() if _is_number(value)}
        return list(names)

    def _defined(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Heights and values where the metric is not NaN."""
        names = self._names()
        if metric not in names:
            near = difflib.get_close_matches(metric, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"metric = {metric!r}: must be one of {', '.join(names)}{hint}")
        values = np.array([row.get(metric, math.nan) for row in self.rows.values()], float)
        known = ~np.isnan(values)
        return np.array(list(self.rows))[known], values[known]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_error(metric: str) -> bool:
    return metric in _ERRORS or "loss" in metric.split("_")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _trend(heights: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    dx, dy = heights - heights.mean(), values - values.mean()
    slope = float(dx @ dy / (dx @ dx))
    spread = math.sqrt((dx @ dx) * (dy @ dy))
    correlation = float(dx @ dy) / spread if spread else math.nan
    change = abs(slope) * float(np.ptp(heights))
    flat = change <= _NO_CHANGE * abs(values).mean() or not abs(correlation) >= _NO_CORRELATION
    direction = "stable" if flat else "increasing" if slope > 0 else "decreasing"
    return {"slope": slope, "correlation": correlation, "direction": direction}
