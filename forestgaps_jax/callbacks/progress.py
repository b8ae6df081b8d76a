"""A progress bar over the whole training, and a line for each epoch."""

import sys
import warnings
from collections import deque
from typing import Any

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.logging import epoch_line

_LAG = 4  # steps: the loss shown is of a step that the device has finished


class ProgressBar(Callback):
    """Shows the training in a terminal or a notebook; elsewhere, or without tqdm, prints the lines only."""

    main_only = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the bar."""
        self._losses: deque[Any] = deque(maxlen=_LAG)
        total = self.run.config.epochs * self.run.steps_per_epoch
        self._bar = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tqdm falls back to text where there are no widgets
                from tqdm.auto import tqdm
        except ImportError:
            return
        watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar = tqdm(
            total=total,
            initial=min(int(self.run.state.step), total),
            unit="step",
            disable=not watched,
            leave=False,
            desc="compiling",
        )

    def on_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Move the bar."""
        assert logs is not None
        if compilation := logs.get("compilation"):
            self._print(f"the training step was {compilation}")
        self._losses.append(logs["metrics"]["loss"])
        if self._bar is None:
            return
        if not self._bar.disable:
            epoch = f"epoch {logs['epoch'] + 1}/{self.run.config.epochs}"
            self._bar.set_description(epoch, refresh=False)
            if len(self._losses) == _LAG:
                self._bar.set_postfix(loss=f"{float(self._losses[0]):.4f}", refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the epoch's line."""
        assert logs is not None
        self._print(epoch_line(epoch, self.run.config.epochs, logs))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the bar, and say why the training ended where it ended before its last epoch."""
        if self._bar is not None:
            self._bar.close()
        if logs is not None and logs["stop_reason"] is not None and not self.run.interrupted:
            self._print(f"stopped: {logs['stop_reason']}")

    def _print(self, line: str) -> None:
        print(line) if self._bar is None else self._bar.write(line, file=sys.stdout)
