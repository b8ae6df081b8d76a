"""From a batch to loss, output and decisions."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from forestgaps_jax.loss import Loss
from forestgaps_jax.state import TrainState
from forestgaps_jax.totals import Decisions, decide, decide_heights
from forestgaps_jax.types import Batch, Listed, Sampler, one_a_sample


def predicts_heights(loss: Loss) -> bool:
    """Whether the loss is of canopy height, so that the network's output is metres and not logits."""
    return getattr(loss, "target", "mask") == "chm"


def forward(
    loss: Loss, state: TrainState, params: Any, loss_params: Any, batch: Batch, **options: Any
) -> tuple[Array, Array, Any]:
    """Loss, output of the network and new model state."""
    heights = predicts_heights(loss)
    if heights and batch.chm is None:
        raise ValueError("a loss of canopy height needs batches with chm, the true heights in metres")
    output, model_state = _network(state, params, batch, heights, options)
    batch = as_scored(loss, batch)
    also: dict[str, Any] = {}
    if getattr(loss, "learns", False):
        also["params"] = loss_params
    if getattr(loss, "needs_threshold", False):
        also["threshold"] = batch.threshold
    targets = batch.chm if heights else batch.mask
    return loss(output, targets, valid=batch.valid, **also), output, model_state


def _network(
    state: TrainState, params: Any, batch: Batch, heights: bool, options: dict[str, Any]
) -> tuple[Array, Any]:
    """Canopy heights of each tile, or logits of each tile's thresholds, as one sample each."""
    if not (heights or getattr(state.apply, "several_thresholds", False)):
        batch = batch.by_threshold()
    threshold = None if heights else batch.threshold
    options = options | state.told(batch.resolution)
    output, model_state = state.apply(params, state.model_state, batch.dsm, threshold, **options)
    several = threshold is not None and threshold.ndim == 2
    return one_a_sample(output) if several else output, model_state


def as_scored(loss: Loss, batch: Batch) -> Batch:
    """One threshold a sample; heights are of tiles, whatever thresholds these come with."""
    return batch if predicts_heights(loss) else batch.by_threshold()


def decisions_of(loss: Loss, output: Array, batch: Batch, thresholds: Listed) -> Decisions:
    """What the output says of each pixel of a batch as it is scored."""
    return (decide_heights if predicts_heights(loss) else decide)(output, batch, thresholds)


def wrong_labels(source: Batch | Sampler) -> Int[Array, ""] | None:
    """How many labels are none; a sampler makes them itself."""
    if isinstance(source, Sampler):
        return None
    mask = jnp.asarray(source.mask)
    return jnp.sum(jnp.asarray(source.counted) & (mask != 0) & (mask != 1), dtype=jnp.int32)
