"""Training: what is given is checked and put together, and what was begun before is taken up."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from forestgaps_jax.callbacks import Callback, CallbackList, Position, Run, with_defaults
from forestgaps_jax.callbacks.resumption import history_of, position_of
from forestgaps_jax.checkpoint import Checkpoint, latest, restore, set_aside, versions
from forestgaps_jax.compilation import CompileGuard
from forestgaps_jax.compilation_cache import use_cache
from forestgaps_jax.config import Config
from forestgaps_jax.data.placing import on_devices, refuse_uneven
from forestgaps_jax.data.reading import as_data, steps_per_epoch
from forestgaps_jax.epochs import HISTORY, Training, no_totals, run_epochs
from forestgaps_jax.evaluation import evaluate, predict
from forestgaps_jax.host import give_freed_memory_back
from forestgaps_jax.interruption import Interruption
from forestgaps_jax.loss import Loss
from forestgaps_jax.parallel import Devices, done_by_main, on_one_device, refuse_different
from forestgaps_jax.readiness import check_monitors, check_state, model_logs, threshold_weights
from forestgaps_jax.recipe import Optimizer, make_recipe
from forestgaps_jax.run_folder import OF_NO_CONSEQUENCE, find_run, held, new_run_folder
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import make_train_step, predicts_heights
from forestgaps_jax.types import Data, Site

__all__ = ["HISTORY", "evaluate", "predict", "train"]


def train(
    state: TrainState,
    config: Config,
    data: Data | Mapping[str, Any] | Site | Sequence[Site],
    callbacks: Sequence[Callback] | None = None,
    *,
    folder: str | Path | None = None,
    history: Mapping[str, Sequence[Any]] | None = None,
    position: Position | None = None,
    resume: Literal["auto", "never"] = "never",
    default_callbacks: bool = True,
    loss_fn: Loss | None = None,
    optimizer: Optimizer | None = None,
    scheduler: optax.Schedule | None = None,
) -> tuple[TrainState, dict[str, list[Any]]]:
    """Train up to ``config.epochs`` epochs.

    All devices share each batch, or as many as ``config.devices`` says.

    Training goes on from ``state.step``: a new state starts at the first epoch, the state of a finished run
    is returned as it is. Ctrl-C and SIGTERM end it at the next step, with a checkpoint where there is a
    folder and the default callbacks are there. A step whose loss or gradient is not finite is skipped.

    Args:
        state: where to start, from `create_state`; it stays usable.
        config: the settings.
        data: a site or several, split by blocks of ground; or a `Data` or a mapping with ``train`` and
            perhaps ``val``: each a sampler, a site or several, or an iterable that can be read again every
            epoch and yields batches (see `forestgaps_jax.data.as_batch`).
        callbacks: hooks, beside those that come by default (progress bar; for a run with a name its logs,
            figures and checkpoints; early stopping if configured).
        folder: an existing run folder to go on in; None for a new one, ``runs_dir/name`` with a number added
            where that exists, or for nothing on disk where ``config.name`` is empty. Where its newest
            checkpoint is of ``state.step``, the sums of the epoch begun and the callbacks go on from it too.
        history: of the epochs before, to go on from: the best so far and the patience count them.
        position: where in its epoch a training stood that was interrupted, as `TrainingInterrupted` has it;
            None: at the next batch, as ``state.step`` tells.
        resume: ``"auto"``: go on from the newest checkpoint of ``folder``, or without one of the latest run
            of this name with the same settings, as if it had never stopped: ``state`` gives the structure
            only, and the start where there is no checkpoint. The callbacks have to be those of before.
        default_callbacks: False leaves the default hooks out.
        loss_fn: ``loss(logits, targets, *, valid=None, sample_weight=None)`` instead of the configured loss;
            one that learns needs ``create_state(..., loss_fn=...)`` too.
        optimizer: an optax transformation, or what makes one from a schedule (such as ``optax.lion``),
            instead of the configured one; needs ``create_state(..., optimizer=...)`` too.
        scheduler: learning rate by optimizer step, instead of the configured one.

    Returns:
        The trained state, and the history: ``train_loss``, ``val_loss``, ``train_metrics``, ``val_metrics``,
        ``lr`` (of the epoch's last step) and ``epoch_times`` (seconds), one entry an epoch, after those of
        ``history``. Where a training goes on within an epoch without a checkpoint of it, that epoch's train
        metrics are of its rest.

    Raises:
        ValueError: settings or data that cannot train; before anything is compiled where possible.
        TypeError: a callback that could never be called rightly.
        OSError: the folder cannot be written to, or another process is training in it.
        DivergenceError: loss or gradient was not finite in ``config.max_skipped_steps`` steps in a row.
        TrainingInterrupted: by Ctrl-C; a KeyboardInterrupt that has the state and the history.
        TrainingTerminated: by SIGTERM; a SystemExit with code 143 that has the state and the history.
    """
    if resume not in ("auto", "never"):
        raise ValueError(f"resume = {resume!r}: must be 'auto' or 'never'")
    config.validate()
    use_cache(config.compilation_cache_dir)
    devices = Devices.of(config.devices, config.fsdp)
    data = as_data(data, config)
    steps = steps_per_epoch(data.train)
    parts: dict[str, Any] = {"loss_fn": loss_fn, "optimizer": optimizer, "scheduler": scheduler}
    recipe = make_recipe(config, steps, **parts)
    check_state(state, config, recipe)
    monitor = check_monitors(config, data, recipe)
    place = None if folder is None else Path(folder)
    if place is None and resume == "auto" and config.name:
        place = find_run(config)
    with ExitStack() as stack:
        if place is not None:
            stack.enter_context(held(place))
        saved = _checkpoint_to_go_on_from(place, state, config, steps, resume)
        if saved is not None and resume == "auto":
            state, history = saved.state, history_of(saved)
        agreed = config.to_dict(), int(state.step), steps
        refuse_different("settings, the state's step and the steps of an epoch", repr(agreed))
        refuse_uneven({"data.train": data.train, "data.val": data.val})
        heights = predicts_heights(recipe.loss)
        run = _new_run(state, config, data, steps, history, place, heights, devices)
        if saved is not None:
            run.position = position_of(saved, no_totals(recipe))
        elif position is not None:
            run.position = position
        hooks = _hooks(run, callbacks or (), default_callbacks)
        for past in run.past_epochs():
            monitor.update(past)
        weights = threshold_weights(config, data) if run.position.epoch < config.epochs else None
        recipe = make_recipe(config, steps, threshold_weights=weights, **parts)
        if run.folder is None and config.name:
            run.folder = new_run_folder(config)
            stack.enter_context(held(run.folder))
        interruption = stack.enter_context(Interruption())
        if hooks.callbacks:
            logs = model_logs(state, config)
            hooks.fire("on_train_begin", config=config, threshold_weights=weights, **logs)
        step = CompileGuard(devices.run(make_train_step(recipe)), ("state", "totals", "batch"))
        data = Data(on_devices(data.train, devices), on_devices(data.val, devices))
        training = Training(run, hooks, data, recipe, monitor, step, interruption, int(state.step) > 0)
        stack.callback(give_freed_memory_back)
        run_epochs(training, saved)
        return on_one_device(run.state), run.history


def _checkpoint_to_go_on_from(
    folder: Path | None, state: TrainState, config: Config, steps: int, resume: Literal["auto", "never"]
) -> Checkpoint | None:
    """The newest checkpoint of a folder, where the training is to go on there, or its state is just that."""
    if folder is None:
        return None
    place, step = folder / "checkpoints", int(state.step)
    newest = latest(place)
    if resume == "never" and newest is not None and newest > step:
        raise ValueError(
            f"{place} holds step {newest}, later than the state's {step}: give another folder, or go on from "
            "there by resume = 'auto'"
        )
    if resume == "never" and newest != step:
        return None
    try:
        saved = restore(place, state, "latest" if resume == "auto" else step, config.to_dict())
    except FileNotFoundError:
        return None
    if saved.info["steps_per_epoch"] != steps:
        raise ValueError(
            f"{folder} was trained on {saved.info['steps_per_epoch']} batches an epoch, and data.train has "
            f"{steps}: go on with the same data, or begin in another folder"
        )
    done_by_main(lambda: set_aside(place, saved.damaged))
    _tell_of_differences(folder, saved)
    return saved


def _tell_of_differences(folder: Path, saved: Checkpoint) -> None:
    log, now, then = logging.getLogger(__name__), versions(), saved.versions
    if other := [
        f"{name} {then[name]}, now {now[name]}" for name in now if then.get(name, now[name]) != now[name]
    ]:
        log.warning(
            "going on from a checkpoint of other versions (%s): numbers may differ in their last digits",
            "; ".join(other),
        )
    told = [words for name, words in saved.differing.items() if name not in OF_NO_CONSEQUENCE | {"epochs"}]
    if told:
        log.warning("going on in %s with other settings: %s", folder, "; ".join(told))


def _new_run(
    state: TrainState,
    config: Config,
    data: Data,
    steps: int,
    history: Mapping[str, Sequence[Any]] | None,
    folder: Path | None,
    heights: bool,
    devices: Devices,
) -> Run:
    past = {name: list((history or {}).get(name, ())) for name in HISTORY}
    # The step gives its buffers away; the caller keeps theirs.
    state = devices.place_state(jax.tree.map(jnp.copy, state))
    run = Run(config, state, steps, data, past, folder, heights, devices)
    run.position = Position(*divmod(int(state.step), steps))
    return run


def _hooks(run: Run, callbacks: Sequence[Callback], defaults: bool) -> CallbackList:
    on_disk = run.folder is not None or bool(run.config.name)
    return CallbackList(with_defaults(run.config, on_disk, callbacks) if defaults else callbacks, run)
