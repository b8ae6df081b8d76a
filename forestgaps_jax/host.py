"""The host's processors and memory: what they can do, and what becomes of memory that programs free.

A training step takes hundreds of megabytes for its duration. By default the system gives them page by page
and clears each, in every step, which takes a fifth of the step. They are kept instead; where the caller's
thread runs the program they are kept once, else once for each of XLA's threads.
"""

import ctypes
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""What `mallopt` sets: see mallopt(3)."""

_MALLOPT = {_TRIM_THRESHOLD: -1, _TOP_PAD: 2**26, _MMAP_MAX: 0}
"""What is freed is kept, also by threads other than the main one, and large arrays are among it."""


def run_in_calling_thread() -> None:
    """Let programs for one CPU run in the thread that calls them.

    JAX asks once, for the first array of a process: later it is without effect. ``jax.config.update(
    "jax_cpu_enable_async_dispatch", True)`` takes it back until then.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether the processor has units for matrices of bfloat16: Intel's AMX, where the system is Linux."""
    with suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        return "amx_bf16" in next((line for line in lines if line.startswith("flags")), "").split()
    return False


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let the process keep what it frees, where its C library is glibc, until it is told to give it back."""
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


def give_freed_memory_back() -> None:
    """Give what was freed back to the system, where the C library is glibc."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    with suppress(OSError, TypeError):  # Windows has no library of the process
        return getattr(ctypes.CDLL(None), name, None)
    return None
