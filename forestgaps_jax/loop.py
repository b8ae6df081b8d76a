"""The training loop: the only place where Python counts epochs and steps."""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from forestgaps_jax.callbacks import (
    Callback,
    CallbackList,
    CheckpointingCallback,
    LoggingCallback,
    Monitor,
    ProgressBar,
    Run,
    new_run_folder,
)
from forestgaps_jax.config import Config
from forestgaps_jax.data.batches import as_images, as_thresholds
from forestgaps_jax.data.reading import as_data, as_evaluation_source, read_batches, steps_per_epoch
from forestgaps_jax.metrics import summarize_counts
from forestgaps_jax.optimization import create_optimizer, create_scheduler
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import Totals, TrainStep, make_eval_step, make_train_step, predict_step
from forestgaps_jax.types import BatchSource, Data, Sampler, Site

HISTORY = ("train_loss", "val_loss", "train_metrics", "val_metrics", "lr", "epoch_times")
"""Keys of the history."""

_RUN_AHEAD = 2
"""Steps that the host may be ahead of the device: enough to keep it busy, too few to fill its memory."""


def train(
    state: TrainState,
    config: Config,
    data: Data | Mapping[str, Any] | Site | Sequence[Site],
    callbacks: Sequence[Callback] | None = None,
    *,
    folder: str | Path | None = None,
) -> tuple[TrainState, dict[str, list[Any]]]:
    """Train up to ``config.epochs`` epochs.

    Training goes on from ``state.step``: a new state starts at the first epoch, the state of a finished run
    is returned as it is.

    Args:
        state: where to start, from `create_state`; it stays usable.
        config: the settings.
        data: a site or several, split by blocks of ground; or a `Data` or a mapping with ``train`` and
            perhaps ``val``: each a sampler, a site or several, or an iterable that can be read again every
            epoch and yields batches (see `forestgaps_jax.data.as_batch`).
        callbacks: hooks, after those that come by default (progress bar; for a run with a name its logs
            and checkpoints).
        folder: an existing run folder to go on in; None for a new one, ``runs_dir/name`` with a number added
            where that exists, or for nothing on disk where ``config.name`` is empty.

    Returns:
        The trained state, and the history: ``train_loss``, ``val_loss``, ``train_metrics``, ``val_metrics``,
        ``lr`` (of the epoch's last step) and ``epoch_times`` (seconds), one entry an epoch of this call.

    Raises:
        ValueError: settings or data that cannot train; before anything is compiled where possible.
        TypeError: a callback that could never be called rightly.
    """
    config.validate()
    data = as_data(data, config)
    check_optimizer(state, config)
    steps = steps_per_epoch(data.train)
    # The step gives its buffers away; the caller keeps theirs.
    run = Run(
        config,
        jax.tree.map(jnp.copy, state),
        steps,
        history={name: [] for name in HISTORY},
        folder=None if folder is None else Path(folder),
    )
    hooks = CallbackList([*default_callbacks(config, run), *(callbacks or ())], run)
    monitor = Monitor(config.monitor_metric)
    if run.folder is None and config.name:
        run.folder = new_run_folder(config)
    start, done = divmod(int(state.step), steps)
    hooks.fire("on_train_begin", config=config)
    try:
        for epoch in range(start, config.epochs):
            _run_epoch(run, hooks, data, monitor, epoch, done)
            done = 0
            if run.stop_reason is not None:
                break
    finally:
        hooks.fire(
            "on_train_end",
            history=run.history,
            best_metrics={monitor.name: monitor.best},
            stop_reason=run.stop_reason,
        )
    return run.state, run.history


def evaluate(
    state: TrainState,
    config: Config,
    batches: BatchSource | Site | Sequence[Site],
    callbacks: Sequence[Callback] | None = None,
) -> dict[str, Any]:
    """Score a state.

    Args:
        state: what to score.
        config: gives the loss and the list of thresholds.
        batches: a sampler, an iterable of batches, or a site or several, scored as a whole.
        callbacks: hooks for the test events.

    Returns:
        ``loss``, the metrics of all pixels, ``confusion_matrix`` and ``threshold_metrics``, as plain Python
        values; pixels of unlisted thresholds count in the whole, not in a threshold.

    Raises:
        ValueError: there is no batch, or one of a wrong shape.
    """
    hooks = CallbackList(callbacks or (), Run(config, state, 0))
    return _evaluate(state, config, as_evaluation_source(batches, config), hooks, "test")


def predict(state: TrainState, dsm: Any, threshold: Any = 10.0) -> Float[Array, "batch height width 1"]:
    """Gap probabilities.

    Args:
        state: what predicts.
        dsm: surface height ``[batch, height, width, 1]`` or ``[batch, height, width]``, metres, NaN where
            not known.
        threshold: canopy height, metres: one for all, or ``[batch]``.

    Returns:
        ``[batch, height, width, 1]`` float32, also where the surface is not known.

    Raises:
        ValueError: shapes that do not fit.
    """
    images = as_images("dsm", dsm)
    return predict_step(state, images, as_thresholds(threshold, images.shape[0]))


def default_callbacks(config: Config, run: Run) -> list[Callback]:
    """What `train` hooks in by itself."""
    bar = [ProgressBar()] if config.use_progress_bar else []
    on_disk = run.folder is not None or config.name
    return [*bar, LoggingCallback(), CheckpointingCallback()] if on_disk else [*bar]


def check_optimizer(state: TrainState, config: Config) -> None:
    """Refuse a state whose optimizer is not the one of ``config``.

    Raises:
        ValueError: says which settings have to be those that the state was created with.
    """
    wanted = jax.eval_shape(create_optimizer(config, lambda step: config.learning_rate).init, state.params)
    if jax.tree.structure(wanted) != jax.tree.structure(state.opt_state):
        raise ValueError(
            f"the state was created with another optimizer than optimizer = {config.optimizer!r}, "
            f"use_gradient_clipping = {config.use_gradient_clipping}, clip_norm = {config.clip_norm}: "
            "pass create_state the same settings as train"
        )


def _run_epoch(run: Run, hooks: CallbackList, data: Data, monitor: Monitor, epoch: int, done: int) -> None:
    config, start = run.config, time.perf_counter()
    hooks.fire("on_epoch_begin", epoch)
    train_metrics = _train_epoch(run, hooks, data.train, epoch, done)
    if train_metrics is None:
        return
    val_metrics: dict[str, Any] = {}
    if data.val is not None:
        val_metrics = _evaluate(run.state, config, data.val, hooks, "validation")
    schedule = create_scheduler(config, run.steps_per_epoch)
    logs = {
        "train_metrics": train_metrics,
        "val_metrics": val_metrics,
        "lr": float(np.asarray(schedule((epoch + 1) * run.steps_per_epoch - 1))),
    }
    logs |= {"improved": monitor.update(logs), "epoch_time": time.perf_counter() - start}
    losses = train_metrics["loss"], val_metrics.get("loss", float("nan"))
    entry = (*losses, train_metrics, val_metrics, logs["lr"], logs["epoch_time"])
    for name, value in zip(HISTORY, entry, strict=True):
        run.history[name].append(value)
    hooks.fire("on_epoch_end", epoch, **logs)


def _train_epoch(
    run: Run, hooks: CallbackList, source: BatchSource, epoch: int, done: int
) -> dict[str, Any] | None:
    """Train from batch ``done`` to the end of the epoch; its metrics, or None where a callback stopped it."""
    step: TrainStep = make_train_step(run.config, run.steps_per_epoch)
    totals, in_flight = Totals.zeros(run.config.thresholds), deque[Array]()
    number = -1
    for number, batch in enumerate(read_batches(source, done), done):
        hooks.fire("on_batch_begin", number, epoch=epoch)
        run.state, totals, logs = step(run.state, totals, batch)
        _wait(in_flight, logs.loss)
        size = run.config.batch_size if isinstance(batch, Sampler) else batch.dsm.shape[0]
        hooks.fire("on_batch_end", number, epoch=epoch, metrics=logs._asdict(), batch_size=size)
        if run.stop_reason is not None and number + 1 < run.steps_per_epoch:
            return None
    if number + 1 != run.steps_per_epoch:
        logging.getLogger(__name__).warning(
            "data.train gave %d batches in epoch %d where %d were announced: the learning rate and the place "
            "to go on from count the announced ones", number + 1, epoch + 1, run.steps_per_epoch
        )  # fmt: skip
    return _summary(totals, run.config)


def _evaluate(
    state: TrainState, config: Config, source: BatchSource, hooks: CallbackList, phase: str
) -> dict[str, Any]:
    step, totals, in_flight = make_eval_step(config), Totals.zeros(config.thresholds), deque[Array]()
    hooks.fire(f"on_{phase}_begin")
    number = -1
    for number, batch in enumerate(read_batches(source)):
        hooks.fire(f"on_{phase}_batch_begin", number)
        totals, loss = step(state, totals, batch, np.int32(number))
        _wait(in_flight, loss)
        hooks.fire(f"on_{phase}_batch_end", number, metrics={"loss": loss})
    if number < 0:
        raise ValueError(f"there is no {phase} batch")
    metrics = _summary(totals, config)
    hooks.fire(f"on_{phase}_end", metrics=metrics)
    return metrics


def _wait(in_flight: deque[Array], loss: Array) -> None:
    """Wait for the step before the last ones: it is done, or all but, and the device never idles."""
    in_flight.append(loss)
    if len(in_flight) > _RUN_AHEAD:
        in_flight.popleft().block_until_ready()


def _summary(totals: Totals, config: Config) -> dict[str, Any]:
    totals = jax.device_get(totals)
    loss = float(totals.loss / totals.pixels) if totals.pixels else float("nan")
    return summarize_counts(totals.counts, config.thresholds, loss)
