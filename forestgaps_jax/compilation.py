"""Compilation: with the options that are fastest where it runs, and with a word of what it took."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, update_wrapper
from typing import Any, TypeVar

import jax
from jax import monitoring

from forestgaps_jax.host import (
    give_freed_memory_back,
    keep_freed_memory,
    multiplies_bfloat16,
    run_in_calling_thread,
)

R = TypeVar("R")

run_in_calling_thread()

_PRODUCTS = "INDIVIDUAL_DOT" if multiplies_bfloat16() else "DOT"
"""Products that YNNPACK computes: alone, or with what surrounds them, where bfloat16 becomes float32."""

_FASTER_ON_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": f"LIBRARY_FUSION_TYPE_{_PRODUCTS},LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
"""By default XLA:CPU also hands convolutions to YNNPACK, where their weight gradients take twice as long;
computes early whatever it can, for which it holds half as much memory again; and drops optimization barriers,
so that what should be computed again is merged with what was computed first, and kept."""

_BACKEND = "/jax/core/compile/backend_compile_duration"
"""Told at the end of a compilation, or of reading its result from the disk."""

_LONG = 1.0
"""Seconds of a compilation from which what it leaves behind is given back to the system."""


def jit(function: Callable[..., R], **options: Any) -> Callable[..., R]:
    """`jax.jit` with `compiler_options`, which it asks for when it is first called.

    Args:
        function: a pure function.
        options: of `jax.jit`.
    """
    return _Jitted(function, options)


@lru_cache(maxsize=1)
def compiler_options() -> dict[str, Any] | None:
    """Options of XLA that make the networks here faster on the default device; None for XLA's own.

    Measured by ``benchmarks/peer.py``. A jaxlib that does not know them does without.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_FASTER_ON_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _FASTER_ON_CPU


class _Jitted:
    """A function that is handed to `jax.jit` when it is first called; its methods are there too."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]):
        self._function, self._options = function, options
        update_wrapper(self, function)

    @cached_property
    def _jitted(self) -> Any:
        _manage_memory()
        return jax.jit(self._function, compiler_options=compiler_options(), **self._options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._jitted(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)


@lru_cache(maxsize=1)
def _manage_memory() -> None:
    """Keep what programs free, but not what long compilations free: of a step's it is a gigabyte."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()

    def follow(event: str, duration_secs: float, **_: Any) -> None:
        if event == _BACKEND and duration_secs > _LONG:
            give_freed_memory_back()

    monitoring.register_event_duration_secs_listener(follow)


@dataclass
class Compilation:
    """What came of the latest compilation.

    Attributes:
        seconds: that it took, with its tracing.
        cached: whether its result was read from JAX's cache on disk.
    """

    seconds: float = 0.0
    cached: bool = False

    def __str__(self) -> str:
        how = "loaded from the compilation cache" if self.cached else "compiled"
        return f"{how} in {self.seconds:.1f} s"


@contextmanager
def watched() -> Iterator[Compilation]:
    """Follow what JAX compiles: seconds from the beginning to the end of the latest compilation."""
    start, seen, hits = time.perf_counter(), Compilation(), 0

    def count(event: str, **_: Any) -> None:
        nonlocal hits
        hits += event == "/jax/compilation_cache/cache_hits"

    def follow(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal hits
        if event == _BACKEND:
            seen.seconds, seen.cached, hits = time.perf_counter() - start, hits > 0, 0

    monitoring.register_event_listener(count)
    monitoring.register_event_duration_secs_listener(follow)
    try:
        yield seen
    finally:
        monitoring.unregister_event_listener(count)
        monitoring.unregister_event_duration_listener(follow)


class _Compiled:
    """Counts what JAX compiles in this process, from `begin` on."""

    count, _begun = 0, False

    def begin(self) -> None:
        if not self._begun:
            monitoring.register_event_duration_secs_listener(self._count)
            self._begun = True

    def _count(self, event: str, duration_secs: float, **_: Any) -> None:
        self.count += event == _BACKEND


_compiled = _Compiled()


class CompileGuard:
    """Calls a compiled function, and warns where that was compiled again, naming the leaf that changed.

    Args:
        function: what `jax.jit` gave.
        arguments: what its arguments are called in the warning.

    Attributes:
        compilations: how often it was compiled.
        compilation: of the latest call, if that was the first and compiled it; else None.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[str, ...]):
        self._function: Any = function
        self._arguments = arguments
        _compiled.begin()
        self._seen: dict[str, str] | None = None
        self.compilations = 0
        self.compilation: Compilation | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        entries, before = self._function._cache_size(), _compiled.count
        with watched() if self._seen is None else nullcontext() as seen:
            result = self._function(*arguments)
        # Entries alone may be other words for the same, such as for where a random key lies.
        compiled = self._function._cache_size() > entries and _compiled.count > before
        self.compilation = seen if compiled else None
        self.compilations += compiled
        if compiled or self._seen is None:
            seen = _signature(dict(zip(self._arguments, arguments, strict=True)))
            if self._seen is not None:
                self._warn(_changes(self._seen, seen))
            self._seen = seen
        return result

    def _warn(self, changes: list[str]) -> None:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        logging.getLogger(__name__).warning(
            "the step was compiled again (%d compilations now): %s%s; each new shape and type is "
            "compiled anew: give batches that are all alike",
            self.compilations, changes[0] if changes else "no leaf differs, but jax's own settings", more,
        )  # fmt: skip


def _signature(arguments: dict[str, Any]) -> dict[str, str]:
    """What of each leaf makes a compiled function another; leaves may have been given away."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(arguments)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    parts = dict(zip(names, (_described(leaf) for _, leaf in leaves), strict=True))
    return {**parts, "the structure": str(structure)}


def _described(leaf: Any) -> str:
    kind = jax.typeof(leaf)
    where = f" on {leaf.sharding}" if isinstance(leaf, jax.Array) and leaf.committed else ""
    return f"{kind.str_short()}{' (weakly typed)' if getattr(kind, 'weak_type', False) else ''}{where}"


def _changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    changed = [
        f"{name} was {before.get(name, 'not there')} and is {now.get(name, 'not there')}"
        for name in [*now, *(before.keys() - now.keys())]
        if name != "the structure" and before.get(name) != now.get(name)
    ]
    if not changed and before["the structure"] != now["the structure"]:
        return [
            "what is not an array in state or batch, such as the model or a setting of a sampler, changed"
        ]
    return changed
