"""Checkpoints while training."""

from typing import Any

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.monitor import Monitor
from forestgaps_jax.checkpoint import Checkpointer, latest
from forestgaps_jax.metrics import to_json


class CheckpointingCallback(Callback):
    """Saves after every epoch to ``checkpoints/`` in the run folder; keeps the last and the best.

    The best is by ``config.monitor_metric``. A run without a folder is not saved.
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the folder."""
        self._monitor = Monitor(self.run.config.monitor_metric)
        self._checkpointer = None
        if self.run.folder is not None:
            folder, step = self.run.folder / "checkpoints", int(self.run.state.step)
            newest = latest(folder)
            if newest is not None and newest > step:
                raise ValueError(
                    f"{folder} holds step {newest}, later than the state's {step}: give another folder"
                )
            self._checkpointer = Checkpointer(folder)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save."""
        assert logs is not None
        if self._checkpointer is None:
            return
        info = {"epoch": epoch, "config": self.run.config.to_dict(), "history": self.run.history}
        self._checkpointer.save(self.run.state, to_json(info), self._monitor.score(logs))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last save."""
        if self._checkpointer is not None:
            self._checkpointer.close()
