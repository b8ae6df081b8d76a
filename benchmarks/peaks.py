"""What the machine can reach at most: matrix products and memory."""

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from forestgaps_jax.compilation import compiler_options


def on_gpu() -> bool:
    """Whether the default device of jax is another than a CPU."""
    return jax.default_backend() != "cpu"


def has_torch() -> bool:
    """Whether PyTorch is there; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def mean_seconds(call: Callable[[], Any], at_least: float = 0.02) -> float:
    """Of one call, after an uncounted one: the mean of as many as take ``at_least`` seconds."""
    call()
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < at_least:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def matmul(dtype: str) -> tuple[Callable[[], float], float]:
    """A large matrix product by jax: its seconds, whenever called, and its operations."""
    side = 8192 if on_gpu() else 2048
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(jnp.dot, compiler_options=compiler_options())
    return lambda: mean_seconds(lambda: product(a, a).block_until_ready()), 2.0 * side**3


def torch_matmul(dtype: str) -> tuple[Callable[[], float], float]:
    """The same by PyTorch, on a CPU with all cores."""
    import torch

    side = 8192 if torch.cuda.is_available() else 2048
    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    a = torch.randn(side, side, dtype=getattr(torch, dtype), device=place)
    return lambda: mean_seconds(lambda: wait_for_torch(torch.mm(a, a))), 2.0 * side**3


def wait_for_torch(result: Any) -> Any:
    """A tensor of PyTorch, once it is there."""
    import torch

    if result.is_cuda:
        torch.cuda.synchronize()
    return result


def copying() -> tuple[Callable[[], float], float]:
    """One added to a large array: its seconds, whenever called, and the bytes read and written."""
    size = 2**28 if on_gpu() else 2**26
    a = jnp.zeros(size, jnp.float32)
    add = jax.jit(lambda a: a + 1.0, donate_argnums=0, compiler_options=compiler_options())
    held = [a]

    def call() -> None:
        held[0] = add(held[0]).block_until_ready()

    return lambda: mean_seconds(call), 8.0 * size
