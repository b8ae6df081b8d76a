"""What the host can do, where programs for it run, and what becomes of memory that they free."""

import io
import resource
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from forestgaps_jax import host
from forestgaps_jax.compilation import jit

MEGABYTES = 64
on_glibc = pytest.mark.skipif(host._of_glibc("mallopt") is None, reason="the C library is not glibc")


@jit
def needs_memory(x):
    """A program that holds 64 MB for its duration."""
    count = MEGABYTES * 2**20 // 4
    return lax.fori_loop(0, 3, lambda _, held: held + 1, jnp.full(count, x[0]))[: len(x)]


def page_faults(steps: int) -> int:
    x = jnp.ones(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        x = needs_memory(x)
    x.block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@on_glibc
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="memory of the host")
def test_a_program_gets_the_memory_that_its_last_call_has_freed():
    pages = MEGABYTES * 2**20 // resource.getpagesize()
    assert page_faults(40) < 40 * pages / 4  # XLA may free it a little after it has answered
    host.give_freed_memory_back()
    assert page_faults(1) > pages / 2


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of programs for CPUs")
def test_a_program_runs_in_the_thread_that_calls_it():
    threads = []
    tell = jax.jit(lambda x: jax.pure_callback(lambda y: threads.append(threading.get_ident()) or y, x, x))
    tell(jnp.ones(2)).block_until_ready()
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize(
    ("flags", "able"), [("fpu avx512_bf16 amx_bf16 amx_tile", True), ("fpu avx512_bf16", False), ("", False)]
)
def test_units_for_bfloat16_are_those_that_the_system_tells(monkeypatch, flags, able):
    monkeypatch.setattr("pathlib.Path.open", lambda path: io.StringIO(f"processor : 0\nflags : {flags}\n"))
    assert host.multiplies_bfloat16.__wrapped__() is able


def test_a_system_that_tells_nothing_of_its_processor_has_no_units_for_bfloat16(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr("pathlib.Path.open", missing)
    assert host.multiplies_bfloat16.__wrapped__() is False
    monkeypatch.setattr("pathlib.Path.open", lambda path: io.StringIO("processor : 0\n"))
    assert host.multiplies_bfloat16.__wrapped__() is False


def test_what_is_set_is_what_glibc_understands(monkeypatch):
    calls = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *call: calls.append(call)))
    host.keep_freed_memory.__wrapped__()
    assert calls == [(-1, -1), (-2, 2**26), (-4, 0)]


@pytest.mark.parametrize("library", [SimpleNamespace, None], ids=["another C library", "Windows"])
def test_a_system_without_glibc_does_without(library, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: library())
    host.keep_freed_memory.__wrapped__()
    host.give_freed_memory_back()
