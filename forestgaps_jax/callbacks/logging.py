"""The record of a run on disk: settings, a log to read, metrics as JSON, TensorBoard events."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import indent
from typing import Any

import jax

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.disk import tolerated
from forestgaps_jax.callbacks.events import open_events, scalars_of
from forestgaps_jax.callbacks.run import Run
from forestgaps_jax.files import write_whole
from forestgaps_jax.metrics import to_json
from forestgaps_jax.run_folder import write_settings

_VERSIONS = ("forestgaps_jax", "jax", "flax", "optax")


class LoggingCallback(Callback):
    """Writes what a run was and how it went to the run folder; a run without a folder is not recorded.

    ``config.toml``: the settings as used. ``train.log``: a line at the start, the network, the weights of
    the thresholds where they have some, how long the step took to compile, a line an epoch, one at the end.
    ``metrics.jsonl``: the logs of each epoch, a line each. ``history.json``: the history, written at the end,
    with the epochs before: those that the training was given, or those of earlier calls in the same folder
    where these are more. Where ``config.use_tensorboard``, TensorBoard events, whose writer is ``run.events``
    for other callbacks, until the end of the training.

    TensorBoard tags, by epoch, for ``train`` and ``val``: ``val/loss``, ``val/iou`` and every other number of
    the metrics; ``val/iou/5m`` (also f1, precision, recall, pr_auc) by threshold; ``val/rmse`` and the like
    of a regression; ``train/grad_norm`` where it is recorded. Besides: ``learning_rate``,
    ``tiles_per_second`` (of training, with its compilation) and the text ``config``. What is no number, or
    NaN, is left out.
    """

    main_only = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the files."""
        self._folder, self._events = self.run.folder, None
        self._start = time.perf_counter()
        if self._folder is None:
            return
        write_settings(self.run.config, self._folder, self._folder.name)
        _forget_epochs(self._folder / "metrics.jsonl", self.run.position.epoch)
        self._write(_first_line(self.run))
        if summary := (logs or {}).get("model_summary"):
            self._write("the network\n" + indent(str(summary), "  "))
        if weights := (logs or {}).get("threshold_weights"):
            told = ", ".join(f"{threshold:g} m {weight:.3g}" for threshold, weight in weights.items())
            self._write(f"threshold weights: {told}")
        if self.run.config.use_tensorboard:
            self._events = self.run.events = open_events(self._folder, self.run.position.epoch)
        if self._events is not None:
            settings = (self._folder / "config.toml").read_text(encoding="utf-8")
            self._events.add_text("config", f"```toml\n{settings}```", 0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start counting tiles."""
        self._tiles, self._seconds, self._epoch_start = 0, 0.0, time.perf_counter()

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count tiles, and the time that they took."""
        assert logs is not None
        if self._folder is not None and (compilation := logs.get("compilation")):
            self._write(f"the training step was {compilation}")
        self._tiles += logs["batch_size"]
        self._seconds = time.perf_counter() - self._epoch_start

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch."""
        assert logs is not None
        if self._folder is None:
            return
        line = json.dumps(to_json({"epoch": epoch, **logs}), default=_plain)
        # A line of its own, also after one that a full disk has cut off.
        with tolerated("metrics.jsonl"), open(self._folder / "metrics.jsonl", "a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            file.write(b"\n" * (file.read(1) not in (b"", b"\n")) + line.encode() + b"\n")
        self._write(epoch_line(epoch, self.run.config.epochs, logs))
        if self._events is not None:
            for tag, value in scalars_of(logs):
                self._events.add_scalar(tag, value, epoch)
            if self._seconds > 0:
                self._events.add_scalar("tiles_per_second", self._tiles / self._seconds, epoch)
            self._events.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the files."""
        assert logs is not None
        if self._folder is None:
            return
        history = json.dumps(_whole_history(self._folder / "metrics.jsonl", logs["history"]), default=_plain)
        with tolerated("history.json"):
            write_whole(self._folder / "history.json", history)
        best = ", ".join(f"{name} {_short(value)}" for name, value in logs["best_metrics"].items())
        reason = logs["stop_reason"]
        self._write(
            f"{'end' if reason is None else f'stopped: {reason}'}; best {best}; "
            f"{time.perf_counter() - self._start:.1f} s in all"
        )
        if self._events is not None:
            self._events.close()
            self._events = self.run.events = None

    def _write(self, line: str) -> None:
        assert self._folder is not None
        with tolerated("train.log"), open(self._folder / "train.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


def epoch_line(epoch: int, epochs: int, logs: Mapping[str, Any]) -> str:
    """An epoch in one line: losses, IoU, RMSE of a regression, learning rate, time, whether it is the best.

    >>> metrics = {"loss": 0.5, "iou": 0.25}
    >>> logs = {"train_metrics": metrics, "val_metrics": {}, "lr": 1e-3, "improved": True, "epoch_time": 2.0}
    >>> epoch_line(8, 10, logs)
    'epoch  9/10  loss 0.5000  iou 0.250  lr 0.001  2.0 s  * best so far'
    """
    parts = []
    for prefix, metrics in (("", logs["train_metrics"]), ("val_", logs["val_metrics"])):
        shown = {"loss": metrics.get("loss"), "iou": metrics.get("iou")}
        shown["rmse"] = metrics.get("regression", {}).get("rmse")
        for (name, value), digits in zip(shown.items(), (4, 3, 3), strict=True):
            if value is not None:
                parts.append(f"{prefix}{name} {value:.{digits}f}")
    parts += [f"lr {logs['lr']:.2g}", f"{logs['epoch_time']:.1f} s"]
    best = "  * best so far" if logs["improved"] else ""
    return f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}  {'  '.join(parts)}{best}"


def _first_line(run: Run) -> str:
    versions = ", ".join(f"{name} {sys.modules[name].__version__}" for name in _VERSIONS)
    devices = jax.devices()
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    return (
        f"start at step {int(run.state.step)}: {run.config.model_name}, {weights} weights; "
        f"{run.steps_per_epoch} steps an epoch, {run.config.epochs} epochs; "
        f"{len(devices)} x {devices[0].device_kind}; {versions}"
    )


def _forget_epochs(lines: Path, first: int) -> None:
    """Drop the lines of epochs that will come again, and one that was cut off."""
    if lines.is_file():
        kept = [json.dumps(entry) + "\n" for entry in _entries(lines) if entry["epoch"] < first]
        write_whole(lines, "".join(kept))


def _entries(lines: Path) -> list[dict[str, Any]]:
    """Those of the lines that are whole; the disk may have been full in the midst of one."""
    entries = []
    for line in lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else ():
        with suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def _whole_history(lines: Path, history: Mapping[str, Any]) -> dict[str, Any]:
    """The history, or what the lines hold, the latest of each epoch, where these are more epochs."""
    whole = to_json(history)
    entries = list({entry["epoch"]: entry for entry in _entries(lines)}.values())
    if len(entries) > len(history["lr"]):
        for name in ("train_metrics", "val_metrics", "lr"):
            whole[name] = [entry[name] for entry in entries]
        for phase in ("train", "val"):
            whole[f"{phase}_loss"] = [metrics.get("loss") for metrics in whole[f"{phase}_metrics"]]
        whole["epoch_times"] = [entry["epoch_time"] for entry in entries]
    return whole


def _plain(value: Any) -> Any:
    """What JSON does not know, as lists and numbers, or else in words."""
    return to_json(value.tolist()) if hasattr(value, "tolist") else repr(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
