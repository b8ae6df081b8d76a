"""Exact counts of a binary confusion, on the device, and every metric that follows from them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt32

from forestgaps_jax.metrics.counter import ExactCounter, check_countable
from forestgaps_jax.types import SAME_THRESHOLD, pytree_dataclass

CELLS = ("tp", "fp", "fn", "tn")
"""Order of the four counts; gap is the positive class."""

_BYTES = (0, 8, 16, 24)


@pytree_dataclass
class ConfusionCounts:
    """Pixels by prediction and truth, in ``groups`` rows (one a height threshold).

    A pytree of exact counts that one adds to inside a compiled step.

    >>> counts = ConfusionCounts.zeros(1)
    >>> predicted = jnp.array([[True, True, False, False]])
    >>> counts = counts.update(predicted, jnp.array([[1, 0, 1, 0]]))
    >>> counts.to_numpy()
    array([[1, 1, 1, 1]])

    Attributes:
        cells: tp, fp, fn, tn of each row.
        samples: tiles that had a pixel to count.
    """

    cells: ExactCounter
    samples: Int[Array, " groups"]

    @staticmethod
    def zeros(groups: int) -> "ConfusionCounts":
        """Nothing counted yet."""
        return ConfusionCounts(ExactCounter.zeros(groups, len(CELLS)), jnp.zeros(groups, jnp.int32))

    def update(
        self,
        predictions: Bool[Array, "batch ..."],
        targets: Num[Array, "batch ..."] | Bool[Array, "batch ..."],
        *,
        group: Int[Array, " batch"] | None = None,
        valid: Bool[Array, "batch ..."] | None = None,
    ) -> "ConfusionCounts":
        """Add a batch.

        Args:
            predictions: True where gap is predicted.
            targets: 1 (or True) where there is gap.
            group: the row that each sample belongs to; None for the first.
            valid: pixels that count; None for all.

        Raises:
            TypeError: predictions are not boolean (``logits > 0`` or ``probabilities > 0.5`` are).
            ValueError: shapes differ, or the batch has 2^32 pixels or more.
        """
        if predictions.dtype != jnp.bool_:
            raise TypeError(
                f"predictions are {predictions.dtype}: must be bool, such as logits > 0 or "
                "probabilities > 0.5"
            )
        check_countable("predictions", predictions, targets=targets, valid=valid)
        if group is None:
            group = jnp.zeros(predictions.shape[0], jnp.int32)
        truth = targets.astype(bool)
        counted = jnp.ones_like(truth) if valid is None else valid.astype(bool)
        each = _count_cells(*(array.reshape(len(truth), -1) for array in (predictions, truth, counted)))
        groups = self.samples.shape[0]
        rows = jax.ops.segment_sum(each, group, num_segments=groups)
        samples = jax.ops.segment_sum(jnp.any(each, axis=1).astype(jnp.int32), group, groups)
        return ConfusionCounts(self.cells.add(rows), self.samples + samples)

    def merge(self, other: "ConfusionCounts") -> "ConfusionCounts":
        """Add the counts of another, row by row."""
        return ConfusionCounts(self.cells.merge(other.cells), self.samples + other.samples)

    def to_numpy(self) -> Int[np.ndarray, "groups 4"]:
        """The counts as int64; waits for the device."""
        return self.cells.to_numpy()


def _count_cells(
    predicted: Bool[Array, "batch pixels"],
    truth: Bool[Array, "batch pixels"],
    counted: Bool[Array, "batch pixels"],
) -> UInt32[Array, "batch 4"]:
    """tp, fp, fn, tn of each sample, in one pass: the four are bytes of one number, up to 255 pixels long."""
    places = [jnp.uint32(1 << shift) for shift in _BYTES]
    cell = jnp.where(predicted, jnp.where(truth, *places[:2]), jnp.where(truth, *places[2:]))
    packed = jnp.where(counted, cell, jnp.uint32(0))
    pixels = packed.shape[1]
    length = max(length for length in range(1, 256) if pixels % length == 0)
    packed = jnp.sum(packed.reshape(-1, length, pixels // length), axis=1, dtype=jnp.uint32)
    return jnp.stack([jnp.sum((packed >> shift) & 255, axis=1, dtype=jnp.uint32) for shift in _BYTES], axis=1)


def threshold_index(
    threshold: Float[Array, " batch"], thresholds: Sequence[float] | Float[Array, "_"]
) -> Int[Array, " batch"]:
    """Place of each threshold in the list, within 1 mm; ``len(thresholds)`` for one that is not listed."""
    match = jnp.abs(threshold[:, None] - jnp.asarray(thresholds, jnp.float32)) < SAME_THRESHOLD
    return jnp.where(match.any(axis=1), jnp.argmax(match, axis=1), len(thresholds))


def confusion_metrics(
    counts: ConfusionCounts | Sequence[Any] | Int[np.ndarray, "*groups 4"],
) -> dict[str, float]:
    """Every metric of the contract from tp, fp, fn, tn; rows are added up first.

    A metric whose denominator is 0 is NaN: neither right nor wrong. ``mean_iou`` is the mean of the IoU of
    gap and of the rest, over those of the two that are defined.

    >>> confusion_metrics([6, 2, 2, 10])["iou"]
    0.6
    """
    rows = counts.to_numpy() if isinstance(counts, ConfusionCounts) else np.asarray(counts)
    tp, fp, fn, tn = (int(n) for n in rows.reshape(-1, 4).sum(axis=0, dtype=np.int64))
    total = tp + fp + fn + tn
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    both_iou = [x for x in (_ratio(tp, tp + fp + fn), _ratio(tn, tn + fp + fn)) if not math.isnan(x)]
    return {
        "iou": _ratio(tp, tp + fp + fn),
        "mean_iou": sum(both_iou) / len(both_iou) if both_iou else math.nan,
        "f1": _f_score(1, tp, fp, fn),
        "f2": _f_score(2, tp, fp, fn),
        "f05": _f_score(0.5, tp, fp, fn),
        "dice": _f_score(1, tp, fp, fn),
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "specificity": specificity,
        "accuracy": _ratio(tp + tn, total),
        "balanced_accuracy": (recall + specificity) / 2,
        "error_rate": _ratio(fp + fn, total),
        "mcc": _ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        "n_pixels": float(total),
        "gap_proportion": _ratio(tp + fn, total),
    }


def confusion_matrix(counts: ConfusionCounts | Int[np.ndarray, "*groups 4"]) -> dict[str, int | float]:
    """The four counts as exact integers, their totals, and their rates within the true class.

    >>> confusion_matrix(np.array([6, 2, 2, 10]))["total_gap_pixels"]
    8
    """
    rows = counts.to_numpy() if isinstance(counts, ConfusionCounts) else counts
    tp, fp, fn, tn = (int(n) for n in rows.reshape(-1, 4).sum(axis=0, dtype=np.int64))
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "total_pixels": tp + fp + fn + tn,
        "total_gap_pixels": tp + fn,
        "total_non_gap_pixels": fp + tn,
        "tp_rate": _ratio(tp, tp + fn),
        "fp_rate": _ratio(fp, fp + tn),
        "fn_rate": _ratio(fn, tp + fn),
        "tn_rate": _ratio(tn, fp + tn),
    }


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def _f_score(beta: float, tp: int, fp: int, fn: int) -> float:
    return _ratio((1 + beta**2) * tp, (1 + beta**2) * tp + beta**2 * fn + fp)
