"""The steps that were handed to the device and are not yet known to be done."""

from collections import deque
from collections.abc import Callable
from typing import Any

from forestgaps_jax.steps import EvalLogs, StepLogs

_RUN_AHEAD = 2
"""Steps that the host may be ahead of the device: enough to keep it busy, too few to fill its memory."""


class InFlight:
    """Waits for the step before the last ones, which is done or all but, so that the device never idles.

    What a step has found wrong is seen then: its copy to the host was begun with the step, so that looking at
    it waits for nothing.

    Args:
        check: called as ``check(number, source, logs)`` for each step, in order, when it is done.

    Raises:
        ValueError: from all methods: masks on the device hold anything but 0 and 1.
    """

    def __init__(self, check: Callable[[int, Any, Any], None] = lambda number, source, logs: None):
        self._check = check
        self._steps: deque[tuple[int, Any, StepLogs | EvalLogs]] = deque()

    def push(self, number: int, source: Any, logs: StepLogs | EvalLogs) -> None:
        """Take a step in; one that was long ago is waited for and checked."""
        for name in ("wrong_labels", "skipped_in_a_row"):
            if (value := getattr(logs, name, None)) is not None:
                value.copy_to_host_async()
        self._steps.append((number, source, logs))
        if len(self._steps) > _RUN_AHEAD:
            self._pop()

    def drain(self) -> None:
        """Wait for and check all that are left."""
        while self._steps:
            self._pop()

    def _pop(self) -> None:
        number, source, logs = self._steps.popleft()
        logs.loss.block_until_ready()
        _refuse_wrong_labels(number, logs)
        self._check(number, source, logs)


def _refuse_wrong_labels(number: int, logs: StepLogs | EvalLogs) -> None:
    """Refuse masks on the device, which nobody has looked at before."""
    if logs.wrong_labels is not None and (wrong := int(logs.wrong_labels)):
        raise ValueError(
            f"batch {number}: mask holds other values than 0 and 1 in {wrong} valid pixels: must be 1 for "
            "gap and 0 for not; mark what is not known in valid"
        )
