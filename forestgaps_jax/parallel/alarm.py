"""A clock that all processes go by."""

import time

from forestgaps_jax.parallel.processes import is_alone, said_by_main


class Alarm:
    """Rings after some time, in all processes at the same call.

    They cannot ask each other at every call, which would wait for the device: they ask the main one when half
    of the calls that are left, as it estimates, have passed.

    Args:
        seconds: from one ring, or `reset`, to the next.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._start, self._calls, self._asks_at = time.monotonic(), 0, 1

    def rings(self) -> bool:
        """Whether it is time; all processes call it equally often."""
        if is_alone():
            return self._passed() >= self._seconds
        self._calls += 1
        if self._calls < self._asks_at:
            return False
        # Always as many letters, so that nothing is compiled anew.
        wait = int(said_by_main(lambda: f"{self._calls_to_wait():012d}"))
        self._asks_at = self._calls + wait
        return wait == 0

    def _calls_to_wait(self) -> int:
        left = self._seconds - self._passed()
        if left <= 0:
            return 0
        halfway = int(left / (self._passed() / self._calls) / 2)
        return max(1, min(halfway, self._calls))

    def _passed(self) -> float:
        return time.monotonic() - self._start
