"""What was compiled is kept on disk for the next process, where nobody says otherwise."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = textwrap.dedent(
    """
    import jax, jax.numpy as jnp
    from forestgaps_jax.compilation import CompileGuard
    from forestgaps_jax.compilation_cache import use_cache

    jax.jit(lambda x: x + 1)(1.0)  # a notebook has computed something before
    use_cache({folder!r})
    guard = CompileGuard(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T), ("x",))
    guard(jnp.ones((8, 8)))
    print(guard.compilation.cached, jax.config.jax_compilation_cache_dir)
    """
)


def run(folder: str, **environment: str) -> tuple[str, str, str]:
    """Whether the program was read from a cache, which folder that was, and the warnings."""
    clean = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folder=folder)],
        capture_output=True, text=True, check=True, env=clean | environment,
    )  # fmt: skip
    cached, place = done.stdout.split()
    return cached, place, done.stderr


def test_the_second_process_reads_what_the_first_compiled(tmp_path):
    first = run("auto", XDG_CACHE_HOME=str(tmp_path))
    second = run("auto", XDG_CACHE_HOME=str(tmp_path))
    assert (first[0], second[0]) == ("False", "True")
    assert first[1] == second[1]
    place = Path(first[1])
    assert place.parent == tmp_path / "forestgaps_jax"
    assert "jaxlib" in place.name
    assert list(place.glob("*-cache"))


def test_a_damaged_entry_is_compiled_again(tmp_path):
    place = Path(run(str(tmp_path))[1])
    for entry in place.glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:20])
    cached, _, warnings = run(str(tmp_path))
    assert cached == "False"
    assert "Error" not in warnings
    assert run(str(tmp_path))[0] == "True"


def test_an_empty_name_is_none_and_the_users_own_cache_stays(tmp_path):
    assert run("")[1] == "None"
    own = str(tmp_path / "own")
    assert run("auto", JAX_COMPILATION_CACHE_DIR=own)[1] == own


@pytest.mark.skipif(os.name == "nt", reason="a file in the place of a folder is refused in another way")
def test_a_folder_that_cannot_be_is_told_once_and_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    cached, place, warnings = run(str(tmp_path / "file"))
    assert (cached, place) == ("False", "None")
    assert warnings.count("is not kept for later starts, see compilation_cache_dir") == 1


def test_help_imports_no_jax():
    code = (
        "import sys; from forestgaps_jax.cli import main; main(['--help']); "
        "assert not {'jax', 'flax', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "forestgaps-jax COMMAND --help" in done.stdout
