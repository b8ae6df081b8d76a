"""What one process has compiled, the next one reads from the disk; what stands in the way of that is told."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from forestgaps_jax import compilation_cache
from forestgaps_jax.compilation_cache import _is_whole, _machine, _place, _tidy, use_cache

COMPILES = """
import sys
import jax, jax.numpy as jnp
from forestgaps_jax.compilation import watched
from forestgaps_jax.compilation_cache import use_cache
jax.jit(lambda x: x - 1)(1.0)  # JAX has looked for its cache by now
use_cache(sys.argv[1])
with watched() as seen:
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print(seen.cached, jax.config.jax_compilation_cache_dir)
"""


def compiles(folder: str, **environment: str) -> tuple[bool, str]:
    """Whether a new process that uses the cache read it, and where JAX has its cache then."""
    own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-W", "error", "-c", COMPILES, folder]
    run = subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True)
    cached, _, place = run.stdout.strip().partition(" ")
    return cached == "True", place


@pytest.fixture
def no_cache(monkeypatch):
    """JAX without a cache, as a new process has it."""
    before = {
        name: jax.config.values[name] for name in (compilation_cache._DIRECTORY, compilation_cache._SHORTEST)
    }
    jax.config.update(compilation_cache._DIRECTORY, None)
    jax.config.update(compilation_cache._SHORTEST, 1.0)
    monkeypatch.setattr(compilation_cache, "_before", {})
    monkeypatch.setattr(compilation_cache, "_refused", set())
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def directory() -> str | None:
    return jax.config.values[compilation_cache._DIRECTORY]


def test_the_second_process_reads_what_the_first_has_compiled_and_mends_what_is_cut_off(tmp_path):
    place = str(tmp_path / "forestgaps_jax" / _machine())
    assert compiles("auto", XDG_CACHE_HOME=str(tmp_path)) == (False, place)
    assert compiles("auto", XDG_CACHE_HOME=str(tmp_path)) == (True, place)
    for entry in Path(place).glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:-9])
    assert compiles("auto", XDG_CACHE_HOME=str(tmp_path)) == (False, place)
    assert compiles("auto", XDG_CACHE_HOME=str(tmp_path)) == (True, place)


def test_the_cache_of_the_user_stays(tmp_path, no_cache):
    jax.config.update("jax_compilation_cache_dir", "of the user")
    for folder in (str(tmp_path / "ours"), ""):
        use_cache(folder)
        assert directory() == "of the user"
    assert not list(tmp_path.iterdir())


def test_the_cache_of_the_environment_stays(tmp_path):
    theirs = str(tmp_path / "theirs")
    assert compiles(str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=theirs) == (False, theirs)
    assert not (tmp_path / "ours").exists()


def test_the_empty_folder_is_none_and_takes_an_earlier_one_back(tmp_path, no_cache):
    use_cache("")
    assert directory() is None
    for folder in ("one", "two"):
        use_cache(str(tmp_path / folder))
        assert directory() == str(tmp_path / folder / _machine())
        assert jax.config.values[compilation_cache._SHORTEST] == 0.0
    use_cache("")
    assert directory() is None
    assert jax.config.values[compilation_cache._SHORTEST] == 1.0


def test_how_short_a_compilation_the_user_keeps_stays(tmp_path, no_cache):
    jax.config.update(compilation_cache._SHORTEST, 0.7)
    use_cache(str(tmp_path))
    assert jax.config.values[compilation_cache._SHORTEST] == 0.7


def test_a_folder_that_cannot_be_is_told_once(tmp_path, no_cache, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        use_cache(str(tmp_path / "file"))
        use_cache(str(tmp_path / "file"))
    (record,) = caplog.records
    assert "compilation_cache_dir" in record.getMessage()
    assert "Not a directory" in record.getMessage()
    assert directory() is None


def test_the_folder_is_below_the_cache_directory_of_the_user(monkeypatch):
    for given, root in (("/xdg", "/xdg"), ("relative", "/home/ada/.cache"), ("", "/home/ada/.cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        monkeypatch.setenv("HOME", "/home/ada")
        assert _place("auto") == f"{root}/forestgaps_jax/{_machine()}"
    assert _place("~/kept") == f"/home/ada/kept/{_machine()}"


def test_machines_of_other_processors_have_other_folders(monkeypatch):
    machine = _machine.__wrapped__
    names = []
    for text in ("flags : sse avx", "flags : sse avx avx512f", "Features : neon"):
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: f"processor : 0\n{text}\nMHz : 1")
        names.append(machine())
    assert len(set(names)) == 3
    assert all(name.startswith("jaxlib-") for name in names)


def test_the_oldest_entries_go_where_it_has_become_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "_MOST_BYTES", 25)
    now = time.time()
    for age, name in enumerate(
        ("jaxlib-new/a-cache", "jaxlib-new/b-cache", "jaxlib-old/c-cache", "other/d-cache")
    ):
        entry = tmp_path / name
        entry.parent.mkdir(exist_ok=True)
        entry.write_bytes(b"0123456789")
        os.utime(entry, (now - age, now - age))
    _tidy(tmp_path / "jaxlib-new")
    left = sorted(path.name for path in tmp_path.glob("*/*-cache"))
    assert left == ["a-cache", "b-cache", "d-cache"]


def test_an_entry_is_whole_or_not(tmp_path):
    import zlib

    packed = zlib.compress(b"an entry" * 100)
    for content, whole in ((packed, True), (packed[:-1], False), (b"", False), (b"\x28\xb5\x2f\xfd", True)):
        (tmp_path / "entry").write_bytes(content)
        assert _is_whole(tmp_path / "entry") == whole
    (tmp_path / "entry").write_bytes(b"\x78" + packed[2:])
    assert not _is_whole(tmp_path / "entry")
    assert _is_whole(tmp_path / "missing")  # gone meanwhile
