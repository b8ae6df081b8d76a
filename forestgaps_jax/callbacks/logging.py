"""The record of a run on disk: settings, metrics as JSON lines, TensorBoard events."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.metrics import to_json

_PER_THRESHOLD = ("iou", "f1", "precision", "recall")


class LoggingCallback(Callback):
    """Writes ``config.toml``, ``metrics.jsonl`` (one line an epoch) and TensorBoard events.

    A run without a folder is not recorded. TensorBoard tags are ``train/iou``, ``val/iou``,
    ``val/iou/5m``, ``learning_rate`` and ``tiles_per_second``, by epoch.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the files."""
        self._folder, self._events = self.run.folder, None
        if self._folder is not None:
            named = replace(self.run.config, name=self._folder.name, runs_dir=str(self._folder.parent))
            named.to_toml(self._folder / "config.toml")
            if self.run.config.use_tensorboard:
                self._events = _open_events(str(self._folder))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start counting tiles."""
        self._tiles, self._start = 0, time.perf_counter()

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count tiles, and the time that they took."""
        assert logs is not None
        self._tiles += logs["batch_size"]
        self._seconds = time.perf_counter() - self._start

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch."""
        assert logs is not None
        if self._folder is not None:
            line = json.dumps(to_json({"epoch": epoch, **logs}))
            with open(self._folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        if self._events is not None:
            for tag, value in self._scalars(logs):
                self._events.add_scalar(tag, value, epoch)
            self._events.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the files."""
        if self._events is not None:
            self._events.close()

    def _scalars(self, logs: dict[str, Any]) -> Iterator[tuple[str, float]]:
        for phase in ("train", "val"):
            metrics = logs[f"{phase}_metrics"]
            for name, value in metrics.items():
                if isinstance(value, float):
                    yield f"{phase}/{name}", value
            for threshold, by_name in metrics.get("threshold_metrics", {}).items():
                for name in _PER_THRESHOLD:
                    yield f"{phase}/{name}/{threshold:g}m", by_name[name]
        yield "learning_rate", logs["lr"]
        yield "tiles_per_second", self._tiles / self._seconds


def _open_events(folder: str) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        logging.getLogger(__name__).warning("no TensorBoard events: pip install tensorboardX")
        return None
    return SummaryWriter(folder)
