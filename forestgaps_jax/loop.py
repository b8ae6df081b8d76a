"""The training loop: the only place where Python counts epochs and steps."""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from forestgaps_jax.callbacks import Callback, CallbackList, Monitor, Run, new_run_folder, with_defaults
from forestgaps_jax.config import Config
from forestgaps_jax.data.reading import as_data, read_batches, steps_per_epoch
from forestgaps_jax.evaluation import evaluate, predict, score, wait
from forestgaps_jax.loss import Loss
from forestgaps_jax.optimization import create_plateau
from forestgaps_jax.readiness import check_monitors, check_state, model_logs, threshold_weights
from forestgaps_jax.recipe import Optimizer, Recipe, make_recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import make_train_step, predicts_heights
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import Batch, BatchSource, Data, Sampler, Site

__all__ = ["HISTORY", "evaluate", "predict", "train"]

HISTORY = ("train_loss", "val_loss", "train_metrics", "val_metrics", "lr", "epoch_times")
"""Keys of the history."""


def train(
    state: TrainState,
    config: Config,
    data: Data | Mapping[str, Any] | Site | Sequence[Site],
    callbacks: Sequence[Callback] | None = None,
    *,
    folder: str | Path | None = None,
    history: Mapping[str, Sequence[Any]] | None = None,
    default_callbacks: bool = True,
    loss_fn: Loss | None = None,
    optimizer: Optimizer | None = None,
    scheduler: optax.Schedule | None = None,
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
        callbacks: hooks, beside those that come by default (progress bar; for a run with a name its logs,
            figures and checkpoints; early stopping if configured).
        folder: an existing run folder to go on in; None for a new one, ``runs_dir/name`` with a number added
            where that exists, or for nothing on disk where ``config.name`` is empty.
        history: of the epochs before, to go on from: the best so far and the patience count them.
        default_callbacks: False leaves the default hooks out.
        loss_fn: ``loss(logits, targets, *, valid=None, sample_weight=None)`` instead of the configured loss;
            one that learns needs ``create_state(..., loss_fn=...)`` too.
        optimizer: an optax transformation, or what makes one from a schedule (such as ``optax.lion``),
            instead of the configured one; needs ``create_state(..., optimizer=...)`` too.
        scheduler: learning rate by optimizer step, instead of the configured one.

    Returns:
        The trained state, and the history: ``train_loss``, ``val_loss``, ``train_metrics``, ``val_metrics``,
        ``lr`` (of the epoch's last step) and ``epoch_times`` (seconds), one entry an epoch, after those of
        ``history``. Where a training goes on within an epoch, that epoch's train metrics are of its rest.

    Raises:
        ValueError: settings or data that cannot train; before anything is compiled where possible.
        TypeError: a callback that could never be called rightly.
    """
    config.validate()
    data = as_data(data, config)
    steps = steps_per_epoch(data.train)
    start, done = divmod(int(state.step), steps)
    parts: dict[str, Any] = {"loss_fn": loss_fn, "optimizer": optimizer, "scheduler": scheduler}
    recipe = make_recipe(config, steps, **parts)
    check_state(state, config, recipe)
    monitor = check_monitors(config, data, recipe)
    # The step gives its buffers away; the caller keeps theirs.
    run = Run(
        config,
        jax.tree.map(jnp.copy, state),
        steps,
        data=data,
        history={name: list((history or {}).get(name, ())) for name in HISTORY},
        folder=None if folder is None else Path(folder),
        heights=predicts_heights(recipe.loss),
    )
    hooks = _hooks(run, callbacks or (), default_callbacks)
    for past in run.past_epochs():
        monitor.update(past)
    weights = threshold_weights(config, data) if start < config.epochs else None
    recipe = make_recipe(config, steps, threshold_weights=weights, **parts)
    if run.folder is None and config.name:
        run.folder = new_run_folder(config)
    if hooks.callbacks:
        logs = model_logs(state, config)
        hooks.fire("on_train_begin", config=config, threshold_weights=weights, **logs)
    try:
        for epoch in range(start, config.epochs):
            if run.stop_reason is not None:
                break
            _run_epoch(run, hooks, data, recipe, monitor, epoch, done)
            done = 0
    finally:
        hooks.fire(
            "on_train_end",
            history=run.history,
            best_metrics={monitor.name: monitor.best},
            stop_reason=run.stop_reason,
        )
    return run.state, run.history


def _hooks(run: Run, callbacks: Sequence[Callback], defaults: bool) -> CallbackList:
    on_disk = run.folder is not None or bool(run.config.name)
    return CallbackList(with_defaults(run.config, on_disk, callbacks) if defaults else callbacks, run)


def _run_epoch(
    run: Run, hooks: CallbackList, data: Data, recipe: Recipe, monitor: Monitor, epoch: int, done: int
) -> None:
    config, start = run.config, time.perf_counter()
    hooks.fire("on_epoch_begin", epoch)
    trained = _train_epoch(run, hooks, data.train, recipe, epoch, done)
    if trained is None:
        return
    train_metrics, rate = trained
    val_metrics: dict[str, Any] = {}
    if data.val is not None:
        val_metrics = score(run.state, config, data.val, hooks, "validation", recipe.score_loss)
    logs = {"train_metrics": train_metrics, "val_metrics": val_metrics, "lr": rate}
    run._advance(_follow_plateau(run.state, config, monitor.value(logs)))
    logs |= {"improved": monitor.update(logs), "epoch_time": time.perf_counter() - start}
    losses = train_metrics["loss"], val_metrics.get("loss", float("nan"))
    entry = (*losses, train_metrics, val_metrics, logs["lr"], logs["epoch_time"])
    for name, value in zip(HISTORY, entry, strict=True):
        run.history[name].append(value)
    hooks.fire("on_epoch_end", epoch, **logs)


def _train_epoch(
    run: Run, hooks: CallbackList, source: BatchSource, recipe: Recipe, epoch: int, done: int
) -> tuple[dict[str, Any], float] | None:
    """Train from batch ``done`` to the end of the epoch.

    Returns:
        The metrics, and the learning rate of the last step; None where a callback stopped it.
    """
    step, in_flight = make_train_step(recipe), deque[Array]()
    totals = Totals.zeros(
        recipe.thresholds, norms=recipe.monitor_gradients, heights=predicts_heights(recipe.loss)
    )
    number, logs = -1, None
    for number, batch in enumerate(read_batches(source, done), done):
        hooks.fire("on_batch_begin", number, epoch=epoch)
        state, totals, logs = step(run.state, totals, batch)
        run._advance(state)
        wait(in_flight, logs.loss)
        size = _batch_size(batch, run.config)
        hooks.fire("on_batch_end", number, epoch=epoch, metrics=logs._asdict(), batch_size=size)
        if run.stop_reason is not None and number + 1 < run.steps_per_epoch:
            return None
    if number + 1 != run.steps_per_epoch:
        logging.getLogger(__name__).warning(
            "data.train gave %d batches in epoch %d where %d were announced: the learning rate and the place "
            "to go on from count the announced ones", number + 1, epoch + 1, run.steps_per_epoch
        )  # fmt: skip
    rate = float("nan") if logs is None else float(logs.lr)
    return totals.summary(recipe.thresholds), rate


def _batch_size(batch: Batch | Sampler, config: Config) -> int:
    if isinstance(batch, Sampler):
        return getattr(batch, "batch_size", config.batch_size)
    return batch.dsm.shape[0]


def _follow_plateau(state: TrainState, config: Config, value: float) -> TrainState:
    plateau = create_plateau(config)
    if plateau is None:
        return state
    return replace(state, plateau=plateau.update(state.plateau, value))
