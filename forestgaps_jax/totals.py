"""What an epoch adds up on the device, fetched once at its end."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from forestgaps_jax.metrics import (
    ConfusionCounts,
    ProbabilityHistogram,
    RegressionSums,
    merge_metrics,
    regression_metrics,
    summarize_counts,
    summarize_curves,
    threshold_index,
)
from forestgaps_jax.types import Batch, Listed, pytree_dataclass


class Decisions(NamedTuple):
    """Gap or not, predicted and true; ``group`` is the row of the threshold.

    A network of gap logits decides once a sample, one of heights once a sample and listed threshold.
    """

    predicted: Bool[Array, "samples height width 1"]
    truth: Bool[Array, "samples height width 1"]
    valid: Bool[Array, "samples height width 1"]
    group: Int[Array, " samples"]


def decide(logits: Array, batch: Batch, thresholds: Listed) -> Decisions:
    """The decisions of gap logits ``[batch, height, width, 1]`` at the batch's own thresholds."""
    group = threshold_index(jnp.asarray(batch.threshold), thresholds)
    return Decisions(logits > 0, jnp.asarray(batch.mask) > 0.5, jnp.asarray(batch.counted), group)


def decide_heights(heights: Array, batch: Batch, thresholds: Listed) -> Decisions:
    """The decisions of canopy heights (m) ``[batch, height, width, 1]`` at every listed threshold.

    Tile by tile, as `Batch.by_threshold`: a batch that is divided among devices stays where it is.
    """
    size, count = heights.shape[0], len(thresholds)
    listed = jnp.asarray(thresholds, jnp.float32)[:, None, None, None]

    def each(images: Array) -> Array:
        return images.reshape(size * count, *images.shape[2:])

    valid = jnp.broadcast_to(jnp.asarray(batch.counted)[:, None], (size, count, *heights.shape[1:]))
    return Decisions(
        each(heights[:, None] < listed),
        each(jnp.asarray(batch.chm)[:, None] < listed),
        each(valid),
        jnp.tile(jnp.arange(count), size),
    )


@pytree_dataclass
class Totals:
    """Sums over the batches of an epoch.

    Attributes:
        loss: the loss times the batch's valid pixels.
        pixels: valid pixels, as the weight of the loss.
        counts: exact confusion, one row a listed threshold and one for the others.
        norms: finite gradient norms: sum, largest, how many; None if they are not asked for.
        histogram: probabilities by truth, in the rows of ``counts``; None in training and for heights.
        heights: errors of predicted heights; None for a network of gap logits.
        skipped: batches left out of all the others because their loss or gradient was not finite.
    """

    loss: Float[Array, ""]
    pixels: Float[Array, ""]
    counts: ConfusionCounts
    norms: Float[Array, "3"] | None = None
    histogram: ProbabilityHistogram | None = None
    heights: RegressionSums | None = None
    skipped: Int[Array, ""] | None = None

    @staticmethod
    def zeros(
        thresholds: Listed,
        *,
        training: bool = False,
        norms: bool = False,
        histogram: bool = False,
        heights: bool = False,
    ) -> "Totals":
        """Nothing added yet."""
        rows = len(thresholds) + 1
        return Totals(
            jnp.zeros(()),
            jnp.zeros(()),
            ConfusionCounts.zeros(rows),
            jnp.zeros(3) if norms else None,
            ProbabilityHistogram.zeros(rows) if histogram and not heights else None,
            RegressionSums.zeros(1) if heights else None,
            jnp.zeros((), jnp.int32) if training else None,
        )

    def add(
        self,
        loss: Float[Array, ""],
        output: Float[Array, "batch height width 1"],
        batch: Batch,
        decisions: Decisions,
        grad_norm: Float[Array, ""] | None = None,
        finite: Bool[Array, ""] | bool = True,
    ) -> "Totals":
        """Add a batch: its loss, what the network gave, and what follows; nothing of one not finite."""
        valid = jnp.asarray(batch.counted) & finite
        decided = decisions._replace(valid=decisions.valid & finite)
        pixels = jnp.sum(valid, dtype=jnp.float32)
        norms, histogram, heights = self.norms, self.histogram, self.heights
        if norms is not None and grad_norm is not None:
            finite = jnp.isfinite(grad_norm)
            norm = jnp.where(finite, grad_norm, 0.0)
            norms = jnp.stack([norms[0] + norm, jnp.maximum(norms[1], norm), norms[2] + finite])
        if histogram is not None:
            histogram = histogram.update(output, decided.truth, group=decided.group, valid=decided.valid)
        if heights is not None:
            heights = heights.update(output, jnp.asarray(batch.chm), valid=valid)
        return Totals(
            # A batch without a valid pixel has a loss of 0, which weighs nothing.
            self.loss + jnp.where(finite, loss, 0.0) * pixels,
            self.pixels + pixels,
            self.counts.update(decided.predicted, decided.truth, group=decided.group, valid=decided.valid),
            norms,
            histogram,
            heights,
            None if self.skipped is None else self.skipped + ~jnp.asarray(finite),
        )

    def summary(self, thresholds: tuple[float, ...]) -> dict[str, Any]:
        """All metrics, as plain Python values; waits for the device.

        Adds to `summarize_counts`: ``skipped_steps``; ``grad_norm`` and ``grad_norm_max``; ``pr_auc`` and the
        best probability cut; ``regression``; each where it was added up.
        """
        host = jax.device_get(self)
        loss = float(host.loss / host.pixels) if host.pixels else math.nan
        metrics = summarize_counts(host.counts, thresholds, loss)
        if host.norms is not None:
            total, largest, steps = host.norms.tolist()
            mean = total / steps if steps else math.nan
            metrics |= {"grad_norm": mean, "grad_norm_max": largest if steps else math.nan}
        if host.skipped is not None:
            metrics["skipped_steps"] = int(host.skipped)
        if host.heights is not None:
            metrics["regression"] = regression_metrics(host.heights)
        if host.histogram is not None:
            merge_metrics(metrics, summarize_curves(host.histogram, thresholds))
        return metrics
