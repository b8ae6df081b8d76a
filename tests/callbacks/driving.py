"""A training played by hand, so that callbacks are tested without the loop, and what it leaves is read."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax import Config, Data, TrainState
from forestgaps_jax.callbacks import Callback, CallbackList, Position, Run
from forestgaps_jax.metrics import confusion_matrix, confusion_metrics

HISTORY = ("train_loss", "val_loss", "train_metrics", "val_metrics", "lr", "epoch_times")
STEPS = 3


def new_run(
    state: TrainState,
    config: Config,
    data: Data | None = None,
    folder: Path | None = None,
    steps: int = STEPS,
) -> Run:
    """A training that is about to begin."""
    history: dict[str, list[Any]] = {name: [] for name in HISTORY}
    return Run(config, jax.tree.map(jnp.copy, state), steps, data, history, folder)


def scores(cells: Sequence[int] = (6, 2, 2, 10), **others: Any) -> dict[str, Any]:
    """Metrics as an evaluation gives them."""
    threshold_metrics = {t: confusion_metrics([n + int(t) for n in cells]) for t in (5.0, 15.0)}
    whole = {"loss": 0.5, **confusion_metrics(cells), "confusion_matrix": confusion_matrix(np.array(cells))}
    return {**whole, "threshold_metrics": threshold_metrics, **others}


def drive(run: Run, callbacks: Sequence[Callback], val: Sequence[dict[str, Any]], start: int = 0) -> None:
    """Fire what the loop fires over epochs with these validation metrics; every weight is the step."""
    hooks = CallbackList(callbacks, run)
    run.position = Position(start)
    hooks.fire("on_train_begin", config=run.config)
    try:
        for epoch, metrics in enumerate(val, start):
            if run.stop_reason is not None:
                break
            _epoch(run, hooks, epoch, metrics)
    finally:
        best = {run.config.monitor_metric: 0.75}
        hooks.fire("on_train_end", history=run.history, best_metrics=best, stop_reason=run.stop_reason)


def _epoch(run: Run, hooks: CallbackList, epoch: int, val: dict[str, Any]) -> None:
    hooks.fire("on_epoch_begin", epoch)
    for batch in range(run.steps_per_epoch):
        hooks.fire("on_batch_begin", batch, epoch=epoch)
        _step(run)
        lr = 0.1 / (epoch * run.steps_per_epoch + batch + 1)
        metrics = {"loss": jnp.float32(0.5), "grad_norm": jnp.float32(1), "lr": jnp.float32(lr)}
        hooks.fire("on_batch_end", batch, epoch=epoch, metrics=metrics, batch_size=4)
        if run.stop_reason is not None and batch + 1 < run.steps_per_epoch:
            return
    train = scores(loss=0.4)
    logs = {"train_metrics": train, "val_metrics": val, "lr": 0.1 / (epoch + 1)}
    logs |= {"improved": epoch == 0, "epoch_time": 2.0 + epoch}
    entry = (train["loss"], val.get("loss", float("nan")), train, val, logs["lr"], logs["epoch_time"])
    for name, value in zip(HISTORY, entry, strict=True):
        run.history[name].append(value)
    run.position = Position(epoch + 1)
    hooks.fire("on_epoch_end", epoch, **logs)


def _step(run: Run) -> None:
    """One more step, which takes the arrays of the state before, as donation does."""
    before, step = run.state, int(run.state.step) + 1
    params = jax.tree.map(lambda x: jnp.full_like(x, step), before.params)
    run._advance(replace(before, params=params, step=jnp.int32(step)))
    for leaf in jax.tree.leaves(before.params):
        leaf.delete()


def weight(state: TrainState) -> float:
    """What all weights of a driven state are."""
    (value,) = {float(x) for leaf in jax.tree.leaves(state.params) for x in np.unique(leaf)}
    return value


def read_events(folder: Path) -> dict[tuple[str, int], Any]:
    """TensorBoard's values by tag and step: records of length (8 bytes), checksum (4), data, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    values = {}
    for path in folder.glob("events.out.tfevents.*"):
        raw = path.read_bytes()
        while raw:
            size = struct.unpack("<Q", raw[:8])[0]
            event = Event.FromString(raw[12 : 12 + size])
            values |= {(value.tag, event.step): value for value in event.summary.value}
            raw = raw[16 + size :]
    return values


def read_scalars(folder: Path) -> dict[tuple[str, int], float]:
    """TensorBoard's scalars by tag and step."""
    values = read_events(folder)
    return {key: v.simple_value for key, v in values.items() if v.WhichOneof("value") == "simple_value"}
