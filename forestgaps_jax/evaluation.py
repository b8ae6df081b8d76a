"""What a state is worth, and what it predicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from forestgaps_jax.callbacks import Callback, CallbackList, Run
from forestgaps_jax.compilation import CompileGuard
from forestgaps_jax.compilation_cache import use_cache
from forestgaps_jax.config import Config
from forestgaps_jax.data.batches import as_images, as_resolutions, as_thresholds
from forestgaps_jax.data.placing import on_devices, refuse_uneven
from forestgaps_jax.data.reading import BatchReader, as_evaluation_source, read_batches
from forestgaps_jax.data.sampler import TileSampler
from forestgaps_jax.data.tile_stream import TileStream
from forestgaps_jax.in_flight import InFlight
from forestgaps_jax.loss import Loss, create_loss_function
from forestgaps_jax.metrics import GapScores, merge_metrics
from forestgaps_jax.parallel import ONE_DEVICE, Devices, from_all
from forestgaps_jax.recipe import check_loss
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import make_eval_step, predict_step, predicts_heights
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import BatchSource, Site


def evaluate(
    state: TrainState,
    config: Config,
    batches: BatchSource | Site | Sequence[Site],
    callbacks: Sequence[Callback] | None = None,
    *,
    loss_fn: Loss | None = None,
    folder: str | Path | None = None,
    history: Mapping[str, list[Any]] | None = None,
) -> dict[str, Any]:
    """Score a state; with the moving average of its weights where it has one.

    Args:
        state: what to score.
        config: gives the loss, the list of thresholds, and whether outlines and objects are scored.
        batches: a sampler, an iterable of batches, or a site or several, scored as a whole.
        callbacks: hooks for the test events.
        loss_fn: a loss to report instead of the configured one.
        folder: the run folder, for callbacks that write.
        history: of the training, for callbacks that look at it.

    Returns:
        ``loss``, the metrics of all pixels, ``pr_auc``, the best probability cut, ``confusion_matrix`` and
        ``threshold_metrics``, as plain Python values; pixels of unlisted thresholds count in the whole, not
        in a threshold. Of a stream ``unread_tiles`` too. A network of heights has ``regression`` (errors in
        metres) in the place of the curves.

    Raises:
        ValueError: there is no batch, or one of a wrong shape.
    """
    if loss_fn is not None:
        check_loss(loss_fn)
    use_cache(config.compilation_cache_dir)
    devices = Devices.of(config.devices, config.fsdp)
    source = as_evaluation_source(batches, config)
    refuse_uneven({"the data to evaluate on": source})
    source = on_devices(source, devices)
    state = devices.place_state(state)
    own_runs = {callback: callback.run for callback in callbacks or () if hasattr(callback, "run")}
    hooks = CallbackList(callbacks or (), _run(config, state, folder, history))
    try:
        loss = loss_fn or create_loss_function(config)
        metrics = score(state, config, source, hooks, "test", loss, devices=devices)
    finally:
        for callback, own in own_runs.items():
            callback.run = own
    assert metrics is not None
    return metrics


def _run(config: Config, state: TrainState, folder: Any, history: Any) -> Run:
    return Run(config, state, 0, history=dict(history or {}), folder=None if folder is None else Path(folder))


def predict(
    state: TrainState, dsm: Any, threshold: Any = 10.0, resolution: Any = None
) -> Float[Array, "batch height width 1"]:
    """Gap probabilities.

    Args:
        state: what predicts.
        dsm: surface height ``[batch, height, width, 1]`` or ``[batch, height, width]``, metres, NaN where
            not known.
        threshold: canopy height, metres: one for all, or ``[batch]``.
        resolution: side of a pixel, metres, likewise; None: 1 m, for a network that asks for it.

    Returns:
        ``[batch, height, width, 1]`` float32, also where the surface is not known.

    Raises:
        TypeError: thresholds or resolutions that are no numbers.
        ValueError: shapes that do not fit; thresholds or resolutions that are not above 0.
    """
    images = as_images("dsm", dsm)
    pixels = as_resolutions(resolution, images.shape[0])
    return predict_step(state, images, as_thresholds(threshold, images.shape[0]), pixels)


def one_pass(source: BatchSource, config: Config) -> BatchSource:
    """A source in which each tile comes once: predicted heights answer every threshold."""
    first = config.thresholds[:1]
    if isinstance(source, TileSampler):
        return replace(source, thresholds=first)
    return source.at(first) if isinstance(source, TileStream) else source


def score(
    state: TrainState,
    config: Config,
    source: BatchSource,
    hooks: CallbackList,
    phase: str,
    loss: Loss,
    interrupted: Callable[[], bool] = lambda: False,
    devices: Devices = ONE_DEVICE,
) -> dict[str, Any] | None:
    """The metrics of one pass over a source, firing the events of ``phase`` (validation or test).

    State and source lie on the devices. ``interrupted`` is asked after every batch; None is returned where it
    says yes.
    """
    heights = predicts_heights(loss)
    step = devices.run(make_eval_step(loss, config.thresholds))
    step = CompileGuard(step, ("state", "totals", "batch", "number"))
    source = one_pass(source, config) if heights else source
    totals = devices.replicate(Totals.zeros(config.thresholds, histogram=True, heights=heights))
    gaps = GapScores(config.boundary_tolerance) if config.gap_scores and phase == "test" else None
    in_flight = InFlight()
    hooks.fire(f"on_{phase}_begin")
    number = -1
    batches = read_batches(source, config.thresholds, devices)
    for number, batch in enumerate(batches):
        hooks.fire(f"on_{phase}_batch_begin", number)
        totals, logs = step(state, totals, batch, np.int32(number))
        in_flight.push(number, batch, logs)
        if gaps is not None:
            gaps.update(*(from_all(part) for part in logs.decisions))
        stop = interrupted()
        hooks.fire(f"on_{phase}_batch_end", number, metrics={"loss": logs.loss})
        if stop:
            return None
    in_flight.drain()
    if number < 0:
        raise ValueError(f"there is no {phase} batch")
    metrics = totals.summary(config.thresholds)
    if isinstance(batches, BatchReader):
        metrics |= batches.unread()
    if gaps is not None:
        merge_metrics(metrics, gaps.compute(config.thresholds))
    hooks.fire(f"on_{phase}_end", metrics=metrics)
    return metrics
