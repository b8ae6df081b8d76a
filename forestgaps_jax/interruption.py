"""SIGTERM and Ctrl-C, taken at the next step boundary instead of at once."""

import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any

import jax

from forestgaps_jax.callbacks import Position
from forestgaps_jax.checkpoint import reached_preemption
from forestgaps_jax.state import TrainState

History = dict[str, list[Any]]


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a training, at a step boundary.

    Attributes:
        state: after the last step.
        history: of the epochs that were finished.
        position: within the epoch begun, for `train` to go on from.
    """

    def __init__(self, message: str, state: TrainState, history: History, position: Position):
        super().__init__(message)
        self.state, self.history, self.position = state, history, position


class TrainingTerminated(SystemExit):
    """SIGTERM, or the notice of a preemption, ended a training, at a step boundary; exit code 143.

    Attributes:
        message: in one line.
        state: after the last step.
        history: of the epochs that were finished.
        position: within the epoch begun, for `train` to go on from.
    """

    def __init__(self, message: str, state: TrainState, history: History, position: Position):
        super().__init__(128 + signal.SIGTERM)
        self.message, self.state, self.history, self.position = message, state, history, position


class Interruption:
    """Notes the first SIGTERM or Ctrl-C for the loop to see; a second one ends the process at once.

    A context manager for the main thread; elsewhere signals stay as they are. Where jax.distributed runs,
    its own notice of preemption takes the place of SIGTERM, so that all processes stop at the same step, and
    Ctrl-C ends the process at once.

    Attributes:
        signal: that was received; None for none.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            numbers = [] if jax.distributed.is_initialized() else [signal.SIGINT, signal.SIGTERM]
            # Who ignores a signal, as background jobs do, goes on to; None is no handler of Python's.
            taken = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._note) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self, step: int | None = None) -> bool:
        """Whether to stop after this training step, the same answer in all processes; None between them."""
        if self.signal is None and step is not None and reached_preemption(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def error(
        self, message: str, state: TrainState, history: History, position: Position
    ) -> TrainingInterrupted | TrainingTerminated:
        """What to raise when the training has been put away."""
        kind = TrainingInterrupted if self.signal == signal.SIGINT else TrainingTerminated
        return kind(message, state, history, position)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker that was forked ends as ever
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number)
        for again in self._before:
            # A notebook's kernel shall outlive a second Ctrl-C, a program shall not.
            spared = again == signal.SIGINT and "ipykernel" in sys.modules
            signal.signal(again, signal.default_int_handler if spared else signal.SIG_DFL)
