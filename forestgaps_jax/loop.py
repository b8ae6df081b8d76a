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
from flax import nnx
from jaxtyping import Array

from forestgaps_jax.callbacks import Callback, CallbackList, Monitor, Run, new_run_folder
from forestgaps_jax.callbacks import default_callbacks as hooks_of
from forestgaps_jax.config import Config
from forestgaps_jax.data.reading import as_data, read_batches, steps_per_epoch
from forestgaps_jax.evaluation import evaluate, predict, score, wait
from forestgaps_jax.loss import Loss, create_threshold_weights
from forestgaps_jax.models import model_summary
from forestgaps_jax.optimization import create_plateau
from forestgaps_jax.recipe import Optimizer, Recipe, make_recipe
from forestgaps_jax.state import NNXApply, TrainState
from forestgaps_jax.statistics import gap_shares
from forestgaps_jax.steps import make_train_step, predicts_heights
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import BatchSource, Data, Sampler, Site

__all__ = ["HISTORY", "check_state", "evaluate", "predict", "train"]

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
        ``history``.

    Raises:
        ValueError: settings or data that cannot train; before anything is compiled where possible.
        TypeError: a callback that could never be called rightly.
    """
    config.validate()
    data = as_data(data, config)
    steps = steps_per_epoch(data.train)
    parts: dict[str, Any] = {"loss_fn": loss_fn, "optimizer": optimizer, "scheduler": scheduler}
    recipe = make_recipe(config, steps, gap_shares=_gap_shares(config, data), **parts)
    check_state(state, config, recipe)
    # The step gives its buffers away; the caller keeps theirs.
    run = Run(
        config,
        jax.tree.map(jnp.copy, state),
        steps,
        data=data,
        history={name: list((history or {}).get(name, ())) for name in HISTORY},
        folder=None if folder is None else Path(folder),
    )
    on_disk = run.folder is not None or bool(config.name)
    before, after = hooks_of(config, on_disk) if default_callbacks else ([], [])
    hooks = CallbackList([*before, *(callbacks or ()), *after], run)
    monitor = Monitor(config.monitor_metric, config.monitor_mode)
    if state.plateau is not None:
        monitor.check(config, validated=data.val is not None)
    for train_metrics, val_metrics in zip(
        run.history["train_metrics"], run.history["val_metrics"], strict=True
    ):
        monitor.update({"train_metrics": train_metrics, "val_metrics": val_metrics})
    if run.folder is None and config.name:
        run.folder = new_run_folder(config)
    start, done = divmod(int(state.step), steps)
    hooks.fire("on_train_begin", config=config, **(_model_logs(state, config) if hooks.callbacks else {}))
    try:
        for epoch in range(start, config.epochs):
            _run_epoch(run, hooks, data, recipe, monitor, epoch, done)
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


def check_state(state: TrainState, config: Config, recipe: Recipe) -> None:
    """Refuse a state that is not of these settings.

    Raises:
        ValueError: says which settings have to be those that the state was created with.
    """
    wanted = jax.eval_shape(recipe.optimizer.init, state.trained)
    if jax.tree.structure(wanted) != jax.tree.structure(state.opt_state):
        raise ValueError(
            f"the state was created with another optimizer than optimizer = {config.optimizer!r}, "
            f"use_gradient_clipping = {config.use_gradient_clipping}, clip_norm = {config.clip_norm}, "
            f"gradient_accumulation_steps = {config.gradient_accumulation_steps}: "
            "pass create_state the same settings as train"
        )
    plateau, learns = create_plateau(config) is not None, getattr(recipe.loss, "learns", False)
    for part, needed, setting in (
        (state.ema_params, recipe.ema_decay > 0, f"ema_decay = {recipe.ema_decay}"),
        (state.plateau, plateau, f"scheduler_type = {config.scheduler_type!r}"),
        (state.loss_params, learns, f"loss {recipe.loss}"),
    ):
        if (part is not None) != needed:
            raise ValueError(
                f"the state was created with other settings than {setting}: "
                "pass create_state the same settings as train"
            )


def _model_logs(state: TrainState, config: Config) -> dict[str, Any]:
    """The module and its summary; nothing for a model of another library."""
    if not isinstance(state.apply, NNXApply):
        return {"model": None, "model_summary": ""}
    model = nnx.merge(state.apply.graphdef, state.params, state.model_state)
    stride = getattr(model, "stride", 1)
    side = stride * -(-config.tile_size // stride)
    return {"model": model, "model_summary": model_summary(model, (1, side, side, 1))}


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
    run.state = _follow_plateau(run.state, config, monitor.value(logs))
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
        run.state, totals, logs = step(run.state, totals, batch)
        wait(in_flight, logs.loss)
        size = run.config.batch_size if isinstance(batch, Sampler) else batch.dsm.shape[0]
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


def _follow_plateau(state: TrainState, config: Config, value: float) -> TrainState:
    plateau = create_plateau(config)
    if plateau is None:
        return state
    return replace(state, plateau=plateau.update(state.plateau, value))


def _gap_shares(config: Config, data: Data) -> dict[float, float] | None:
    if not config.use_threshold_weights:
        return None
    shares = gap_shares(data.train, config.thresholds)
    weights = create_threshold_weights(config, shares)
    told = ", ".join(f"{t:g} m: {weights[t]:.2f} (gap {shares[t]:.1%})" for t in config.thresholds)
    logging.getLogger(__name__).info("threshold weights from the training data: %s", told)
    return shares
