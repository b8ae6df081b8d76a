"""Checkpoints while training."""

import logging
from typing import Any

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.monitor import Monitor
from forestgaps_jax.callbacks.resumption import information, progress
from forestgaps_jax.checkpoint import Checkpointer
from forestgaps_jax.parallel import Alarm


class CheckpointingCallback(Callback):
    """Saves to ``checkpoints/`` in the run folder; keeps the last two and the best.

    Saved are every ``save_frequency``-th epoch, every epoch that is the best so far, the last one, every
    ``save_minutes`` within an epoch, and the step after which `Run.save` or, within an epoch, `Run.stop` was
    called. A training that goes on from any of them ends as if it had never stopped. Epochs that are in the
    history when the training starts count for the best so far. A run without a folder is not saved. Have it
    as the last callback: what others ask for after it waits for the next step.

    A checkpoint that cannot be written does not end the training: an error is logged, and it is tried again.

    Args:
        monitor: what makes a checkpoint the best (see `Monitor`); None for ``config.monitor_metric``, by
            ``config.monitor_mode``.
        mode: whether less or more of ``monitor`` is better.
        save_frequency: epochs between checkpoints; None for ``config.save_frequency``.
        max_to_keep: best checkpoints to keep, beside the last two; None for ``config.max_to_keep``.

    Raises:
        ValueError: no such metric, a number below 1; at the start: a threshold that is not listed, a metric
            that such a network has not.
        OSError: at the start: the folder cannot be written to.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str = "auto",
        save_frequency: int | None = None,
        max_to_keep: int | None = None,
    ):
        for name, value in (("save_frequency", save_frequency), ("max_to_keep", max_to_keep)):
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be 1 or more")
        if monitor is None and mode != "auto":
            raise ValueError(f"mode = {mode!r} without monitor: set config.monitor_mode, or give both")
        if monitor is not None:
            Monitor(monitor, mode)
        self._settings = monitor, mode, save_frequency, max_to_keep

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the folder."""
        config = self.run.config
        monitor, mode, save_frequency, max_to_keep = self._settings
        if monitor is None:
            monitor, mode = config.monitor_metric, config.monitor_mode
        self._monitor = Monitor(monitor, mode)
        self._monitor.check(config, heights=self.run.heights)
        for past in self.run.past_epochs():
            self._monitor.update(past)
        self._save_frequency = save_frequency or config.save_frequency
        self._checkpointer, self._alarm = None, Alarm(60 * config.save_minutes)
        if self.run.folder is None:
            return
        folder, best = self.run.folder / "checkpoints", max_to_keep or config.max_to_keep
        self._checkpointer = Checkpointer(folder, keep_best=best)

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where it was asked for or is time, and before the training ends within an epoch."""
        cut_short = self.run.stop_reason is not None and batch + 1 < self.run.steps_per_epoch
        due = self.run.config.save_minutes > 0 and self._alarm.rings()
        if due or self.run.save_requested or self.run.interrupted or cut_short:
            self._save()

    def on_validation_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save the end of the training epoch where its validation is interrupted."""
        if self.run.interrupted:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save the epochs that are to be saved."""
        assert logs is not None
        done = epoch + 1
        best = self._monitor.update(logs)
        last = done == self.run.config.epochs or self.run.stop_reason is not None
        if best or last or self.run.save_requested or done % self._save_frequency == 0:
            self._save(self._monitor.score(logs))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last save."""
        if self._checkpointer is None:
            return
        try:
            self._checkpointer.close()
        except OSError as error:
            logging.getLogger(__name__).error("the last checkpoint is lost: %s", error)

    def _save(self, score: float | None = None) -> None:
        self.run.save_requested = False
        self._alarm.reset()
        if self._checkpointer is not None:
            self._checkpointer.save(self.run.state, information(self.run), score, progress(self.run))
