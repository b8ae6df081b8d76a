"""Scores over every probability cut, from exact histograms of the probabilities."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Bool, Float, Int, Num, UInt32

from forestgaps_jax.metrics.counter import ExactCounter, check_countable
from forestgaps_jax.types import pytree_dataclass

_LARGEST_LOGIT = 16.0
"""Beyond it a probability is within 1e-7 of 0 or 1."""


@pytree_dataclass
class ProbabilityHistogram:
    """Pixels by truth and predicted probability, in ``groups`` rows (one a height threshold).

    Bins are of equal width in logits, from -16 to 16, the outer ones open: of equal width in probability,
    the last one would hold most gaps of a sure network, and the area under the curve come out too low.
    A pixel is in the upper half of the bins exactly where its logit is above 0.

    >>> histogram = ProbabilityHistogram.zeros(1, bins=4)
    >>> logits, targets = jnp.array([[-9.0, -0.1, 0.1, 9.0]]), jnp.array([[0, 1, 0, 1]])
    >>> histogram.update(logits, targets).to_numpy().tolist()
    [[[1, 0, 1, 0], [0, 1, 0, 1]]]

    Attributes:
        pixels: counts by row, by truth (not gap, gap) and by bin.
    """

    pixels: ExactCounter

    @staticmethod
    def zeros(groups: int, bins: int = 1024) -> "ProbabilityHistogram":
        """Nothing counted yet.

        Raises:
            ValueError: bins are not an even number, so that none would end at a probability of 0.5.
        """
        if bins < 2 or bins % 2:
            raise ValueError(f"bins = {bins}: must be an even number")
        return ProbabilityHistogram(ExactCounter.zeros(groups, 2, bins))

    def update(
        self,
        logits: Float[Array, "batch ..."],
        targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
        *,
        group: Int[Array, " batch"] | None = None,
        valid: Bool[Array, "batch ..."] | None = None,
    ) -> "ProbabilityHistogram":
        """Add a batch; NaN logits count as no gap, as they do in ``logits > 0``.

        Args:
            logits: what the network gives.
            targets: 1 (or True) where there is gap.
            group: the row that each sample belongs to; None for the first.
            valid: pixels that count; None for all.

        Raises:
            ValueError: shapes differ, or the batch has 2^32 pixels or more.
        """
        check_countable("logits", logits, targets=targets, valid=valid)
        groups, _, bins = self.pixels.low.shape
        if group is None:
            group = jnp.zeros(logits.shape[0], jnp.int32)
        scaled = jnp.ceil(logits.astype(jnp.float32) * (bins / (2 * _LARGEST_LOGIT)))
        scaled = jnp.where(jnp.isnan(scaled), -jnp.inf, scaled)
        bin_index = jnp.clip(scaled, 1 - bins // 2, bins // 2).astype(jnp.int32) + bins // 2 - 1
        row = group.reshape(-1, *(1,) * (logits.ndim - 1))
        place = (2 * row + targets.astype(bool)) * bins + bin_index
        counted = jnp.ones(logits.shape, jnp.uint32) if valid is None else valid.astype(jnp.uint32)
        added: UInt32[Array, " cells"] = jax.ops.segment_sum(
            counted.ravel(), place.ravel(), num_segments=groups * 2 * bins
        )
        return ProbabilityHistogram(self.pixels.add(added.reshape(groups, 2, bins)))

    def merge(self, other: "ProbabilityHistogram") -> "ProbabilityHistogram":
        """Add the counts of another, row by row."""
        return ProbabilityHistogram(self.pixels.merge(other.pixels))

    def to_numpy(self) -> Int[np.ndarray, "groups 2 bins"]:
        """The counts as int64; waits for the device."""
        return self.pixels.to_numpy()


class PrecisionRecall(NamedTuple):
    """A precision-recall curve, by rising probability cut.

    Attributes:
        precision: NaN where nothing is predicted.
        recall: NaN where there is no gap.
        cut: gap is predicted where the probability is above; the first is 0 and takes all.
    """

    precision: Float[np.ndarray, " bins"]
    recall: Float[np.ndarray, " bins"]
    cut: Float[np.ndarray, " bins"]


Histogram = ProbabilityHistogram | Int[np.ndarray, "*groups 2 bins"]
"""On the device, or what its ``to_numpy`` gives, of all rows or of one; rows are added up."""


def precision_recall_curve(histogram: Histogram) -> PrecisionRecall:
    """Precision and recall at each edge of the bins.

    >>> curve = precision_recall_curve(np.array([[2, 1, 0, 0], [0, 1, 0, 1]]))
    >>> curve.recall.tolist(), curve.precision.tolist()
    ([1.0, 1.0, 0.5, 0.5], [0.4, 0.6666666666666666, 1.0, 1.0])
    """
    tp, fp = _above_each_cut(histogram)
    return PrecisionRecall(_ratio(tp, tp + fp), _ratio(tp, tp[:1]), _cuts(tp.size))


def average_precision(histogram: Histogram) -> float:
    """Area under the precision-recall curve, by steps; NaN where there is no gap.

    The mean of the precision at each bin, weighted by the gap pixels in the bin: what
    ``sklearn.metrics.average_precision_score`` gives for logits rounded up to the bins' edges.
    """
    tp, fp = _above_each_cut(histogram)
    if tp[0] == 0:
        return math.nan
    in_bin = tp - np.append(tp[1:], 0)
    return float(np.nansum(in_bin * _ratio(tp, tp + fp)) / tp[0])


def best_cut(histogram: Histogram, metric: Literal["f1", "iou"] = "f1") -> tuple[float, float]:
    """The probability cut with the highest F1 or IoU, and that value; NaN where there is no gap.

    Both have the same best cut, since F1 = 2 IoU / (1 + IoU). Of equal cuts it is the nearest to 0.5.
    Gap is predicted where the probability is above the cut.

    >>> best_cut(np.array([[3, 0, 1, 0], [0, 0, 1, 1]]), "iou")
    (0.5, 0.6666666666666666)

    Raises:
        ValueError: another metric.
    """
    if metric not in ("f1", "iou"):
        raise ValueError(f"metric = {metric!r}: must be 'f1' or 'iou'")
    tp, fp = _above_each_cut(histogram)
    if tp[0] == 0:
        return math.nan, math.nan
    iou = tp / (fp + tp[0])
    equal = _cuts(tp.size)[iou == iou.max()]
    best, value = equal[np.argmin(np.abs(equal - 0.5))], iou.max()
    return float(best), float(value if metric == "iou" else 2 * value / (1 + value))


def summarize_curves(histogram: Histogram, thresholds: Sequence[float]) -> dict[str, Any]:
    """Scores over the cuts, of all pixels and per height threshold; waits for the device.

    Args:
        histogram: one row a threshold, and perhaps one for thresholds that are not listed.
        thresholds: the listed heights, metres.

    Returns:
        ``"pr_auc"``, ``"best_cut"``, and the ``"best_cut_f1"`` and ``"best_cut_iou"`` that it gives on these
        pixels; ``"threshold_metrics"``: the same by threshold, for those that have pixels.
    """
    rows = histogram if isinstance(histogram, np.ndarray) else histogram.to_numpy()
    per_threshold = {
        float(threshold): _scores(row) for threshold, row in zip(thresholds, rows, strict=False) if row.any()
    }
    return {**_scores(rows), "threshold_metrics": per_threshold}


def _scores(rows: Int[np.ndarray, "*groups 2 bins"]) -> dict[str, float]:
    cut, f1 = best_cut(rows)
    iou = best_cut(rows, "iou")[1]
    return {"pr_auc": average_precision(rows), "best_cut": cut, "best_cut_f1": f1, "best_cut_iou": iou}


def _above_each_cut(histogram: Histogram) -> tuple[Int[np.ndarray, " bins"], Int[np.ndarray, " bins"]]:
    """True and false positives where gap is what lies above each cut."""
    counts = histogram if isinstance(histogram, np.ndarray) else histogram.to_numpy()
    counts = counts.reshape(-1, *counts.shape[-2:]).sum(axis=0)
    others, gaps = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    return gaps, others


def _cuts(bins: int) -> Float[np.ndarray, " bins"]:
    """Probability at the lower edge of each bin."""
    cuts = scipy.special.expit(np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, bins, endpoint=False))
    cuts[0] = 0.0
    return cuts


def _ratio(above: np.ndarray, below: np.ndarray) -> Float[np.ndarray, " bins"]:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
