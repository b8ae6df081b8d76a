"""The epochs of a training: steps, validation, and what is recorded of them."""

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from forestgaps_jax.callbacks import CallbackList, Monitor, Position, Run
from forestgaps_jax.callbacks.resumption import restore_callbacks
from forestgaps_jax.checkpoint import Checkpoint
from forestgaps_jax.compilation import CompileGuard
from forestgaps_jax.config import Config
from forestgaps_jax.data.reading import BatchReader, read_batches
from forestgaps_jax.divergence import divergence
from forestgaps_jax.evaluation import score
from forestgaps_jax.in_flight import InFlight
from forestgaps_jax.interruption import Interruption
from forestgaps_jax.optimization import create_plateau
from forestgaps_jax.parallel import is_here, on_one_device
from forestgaps_jax.recipe import Recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import StepLogs, predicts_heights
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import Batch, Data, Sampler

HISTORY = ("train_loss", "val_loss", "train_metrics", "val_metrics", "lr", "epoch_times")
"""Keys of the history."""


@dataclass
class Training:
    """A training that is ready to run.

    Attributes:
        run: as the callbacks see it.
        hooks: the callbacks.
        data: the sources.
        recipe: of the step.
        monitor: of ``config.monitor_metric``.
        step: the compiled one.
        interruption: by signals.
        resumed: whether it was begun before, and no epoch has begun since.
    """

    run: Run
    hooks: CallbackList
    data: Data
    recipe: Recipe
    monitor: Monitor
    step: CompileGuard
    interruption: Interruption
    resumed: bool


def no_totals(recipe: Recipe) -> Totals:
    """The sums of a training epoch before its first batch."""
    heights = predicts_heights(recipe.loss)
    return Totals.zeros(recipe.thresholds, training=True, norms=recipe.monitor_gradients, heights=heights)


def run_epochs(training: Training, saved: Checkpoint | None) -> None:
    """Run what is left of a training, and tell the callbacks of its end.

    Args:
        training: that the callbacks were told of.
        saved: what its callbacks go on from; None for a new training.

    Raises:
        DivergenceError: too many steps in a row were not finite.
        TrainingInterrupted: by Ctrl-C.
        TrainingTerminated: by SIGTERM.
    """
    run, monitor = training.run, training.monitor
    try:
        if saved is not None:
            restore_callbacks(run, saved)
        for epoch in range(run.position.epoch, run.config.epochs):
            if run.stop_reason is not None:
                break
            _run_epoch(training, epoch)
    finally:
        training.hooks.fire(
            "on_train_end",
            history=run.history,
            best_metrics={monitor.name: monitor.best},
            stop_reason=run.stop_reason,
        )
    # Also where the signal came after the last step: it was meant for all that follows.
    if _interrupted(training, None):
        where = f"; the same command, or resume = 'auto', goes on in {run.folder}" if run.folder else ""
        message = f"training {run.stop_reason}{where}"
        logging.getLogger(__name__).warning(message)
        position = replace(run.position, totals=on_one_device(run.position.totals))
        raise training.interruption.error(message, on_one_device(run.state), run.history, position)


def _run_epoch(training: Training, epoch: int) -> None:
    run, hooks, data, monitor = training.run, training.hooks, training.data, training.monitor
    config, start = run.config, time.perf_counter() - run.position.seconds
    hooks.fire("on_epoch_begin", epoch)
    trained = _train_epoch(training, epoch, start)
    if trained is None:
        return
    train_metrics, rate = trained
    _refuse_nothing(train_metrics, epoch)
    val_metrics: dict[str, Any] | None = {}
    if data.val is not None:
        ask = partial(_interrupted, training, None)
        loss = training.recipe.score_loss
        val_metrics = score(run.state, config, data.val, hooks, "validation", loss, ask, run.devices)
    if val_metrics is None:
        return
    if val_metrics and not val_metrics["n_pixels"]:
        logging.getLogger(__name__).warning("no pixel of the validation data is valid: its metrics are NaN")
    logs = {"train_metrics": train_metrics, "val_metrics": val_metrics, "lr": rate}
    run._advance(run.devices.place_state(_follow_plateau(run.state, config, monitor.value(logs))))
    logs |= {"improved": monitor.update(logs), "epoch_time": time.perf_counter() - start}
    losses = train_metrics["loss"], val_metrics.get("loss", float("nan"))
    entry = (*losses, train_metrics, val_metrics, logs["lr"], logs["epoch_time"])
    for name, value in zip(HISTORY, entry, strict=True):
        run.history[name].append(value)
    run.position = Position(epoch + 1)
    hooks.fire("on_epoch_end", epoch, **logs)


def _refuse_nothing(metrics: dict[str, Any], epoch: int) -> None:
    if not metrics["n_pixels"] and not metrics["skipped_steps"]:
        raise ValueError(
            f"no pixel of the training data was valid in epoch {epoch + 1}, so nothing was learned: look at "
            "the no-data value of the DSM (and CHM), and at valid"
        )


def _train_epoch(training: Training, epoch: int, start: float) -> tuple[dict[str, Any], float] | None:
    """Train from where the epoch stands to its end.

    Returns:
        The metrics, and the learning rate of the last step; None where it was stopped.
    """
    run, hooks = training.run, training.hooks
    place = run.position
    done = place.batch
    totals, rate = run.devices.replicate(place.totals or no_totals(training.recipe)), place.lr
    in_flight, number = InFlight(partial(_refuse_divergence, run, training.recipe, epoch)), done - 1
    batches, reader = _batches(training, epoch, done)
    for number, batch in enumerate(batches, done):
        hooks.fire("on_batch_begin", number, epoch=epoch)
        state, totals, logs = training.step(run.state, totals, batch)
        run._advance(state)
        rate = logs.lr
        where = None if reader is None else reader.state
        run.position = Position(epoch, number + 1, totals, rate, time.perf_counter() - start, where)
        in_flight.push(number, batch, logs)
        stop = _interrupted(training, epoch * run.steps_per_epoch + number)
        size = _batch_size(batch, run.config)
        told = {"metrics": _told(logs), "batch_size": size, "compilation": training.step.compilation}
        hooks.fire("on_batch_end", number, epoch=epoch, **told)
        if stop or (run.stop_reason is not None and number + 1 < run.steps_per_epoch):
            in_flight.drain()
            return None
    in_flight.drain()
    if number + 1 != run.steps_per_epoch:
        logging.getLogger(__name__).warning(
            "data.train gave %d batches in epoch %d where %d were announced: the learning rate and the place "
            "to go on from count the announced ones", number + 1, epoch + 1, run.steps_per_epoch
        )  # fmt: skip
    unread = {} if reader is None else reader.unread()
    return totals.summary(run.config.thresholds) | unread, float(rate)


def _batches(training: Training, epoch: int, done: int) -> tuple[Any, BatchReader | None]:
    """What is left of an epoch, and what knows where it stands."""
    source, run = training.data.train, training.run
    if isinstance(source, Sampler):
        return list(read_batches(source))[done:], None
    resumed, training.resumed = training.resumed, False
    place = run.position.place_in_source()
    reader = BatchReader(source, done, place, resumed, epoch=epoch, devices=run.devices)
    return reader, reader


def _interrupted(training: Training, step: int | None) -> bool:
    """Whether a signal ends the training after what was last handed to the device."""
    run, interruption = training.run, training.interruption
    if not run.interrupted and interruption.reached(step):
        assert interruption.signal is not None
        run.interrupted = True
        run.stop(f"interrupted by {interruption.signal.name} after step {int(run.state.step)}")
    return run.interrupted


def _refuse_divergence(
    run: Run, recipe: Recipe, epoch: int, number: int, source: Batch | Sampler, logs: StepLogs
) -> None:
    if int(logs.skipped_in_a_row) >= run.config.max_skipped_steps:
        step = epoch * run.steps_per_epoch + number
        folder, state = run.folder if is_here(source) else None, on_one_device(run.state)
        given = run.data and run.data.train  # a sampler as it was, before it was put on devices
        source = given if isinstance(given, Sampler) else on_one_device(source)
        raise divergence(folder, state, step, run.steps_per_epoch, source, logs, recipe.loss)


def _told(logs: StepLogs) -> dict[str, Any]:
    return {name: getattr(logs, name) for name in ("loss", "grad_norm", "lr")}


def _batch_size(batch: Batch | Sampler, config: Config) -> int:
    # Batch first: whether something is a Sampler takes a protocol longer to say.
    if isinstance(batch, Batch):
        return batch.dsm.shape[0]
    return getattr(batch, "batch_size", config.batch_size)


def _follow_plateau(state: TrainState, config: Config, value: float) -> TrainState:
    plateau = create_plateau(config)
    if plateau is None:
        return state
    return replace(state, plateau=plateau.update(state.plateau, value))
