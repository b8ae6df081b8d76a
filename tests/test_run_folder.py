"""The folder of a run is made whole, found again by its settings, and held by one process."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from forestgaps_jax import Config, train
from forestgaps_jax.run_folder import differing_settings, find_run, held, new_run_folder


@pytest.fixture
def named(config, tmp_path) -> Config:
    return replace(config, name="spruce", runs_dir=str(tmp_path))


def test_a_new_folder_has_its_settings_from_the_start(named, tmp_path):
    folder = new_run_folder(named)
    assert folder == tmp_path / "spruce"
    assert [path.name for path in folder.iterdir()] == ["config.toml"]
    assert Config.from_toml(folder / "config.toml") == named


def test_the_latest_run_with_the_same_settings_is_found(named):
    other = replace(named, epochs=9)
    assert find_run(named) is None
    folders = [new_run_folder(config) for config in (named, other, named, other)]
    assert find_run(named) == folders[2]
    assert find_run(other) == folders[3]
    assert find_run(replace(named, use_progress_bar=not named.use_progress_bar)) == folders[2]
    assert find_run(replace(named, seed=4)) is None


def test_a_run_is_found_though_one_before_it_is_gone(named, tmp_path):
    new_run_folder(named)
    second = new_run_folder(named)
    (tmp_path / "spruce" / "config.toml").unlink()
    (tmp_path / "spruce").rmdir()
    (tmp_path / "spruce-fir").mkdir()
    assert find_run(named) == second


def test_a_folder_with_settings_that_cannot_be_read_is_passed_over_and_left_alone(named, tmp_path):
    (tmp_path / "spruce").mkdir()
    (tmp_path / "spruce" / "config.toml").write_text("epochs = [")
    assert find_run(named) is None
    assert new_run_folder(named).name == "spruce-2"
    assert (tmp_path / "spruce" / "config.toml").read_text() == "epochs = ["


def test_an_empty_folder_is_taken(named, tmp_path):
    (tmp_path / "spruce").mkdir()
    assert new_run_folder(named).name == "spruce"


def test_settings_that_differ_are_told_with_both_values(named):
    folder = new_run_folder(named)
    assert differing_settings(replace(named, epochs=7, seed=1), folder) == {"epochs": (2, 7), "seed": (0, 1)}


def test_a_folder_that_another_process_trains_in_is_neither_found_nor_entered(named, state, config, data):
    folder = new_run_folder(named)
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from forestgaps_jax.run_folder import held
        with held(Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        assert find_run(named) is None
        with pytest.raises(BlockingIOError, match=f"another process is training in {folder}"):
            train(state, config, data, folder=folder)
        process.kill()
    assert find_run(named) == folder


def test_one_process_may_hold_a_folder_several_times(tmp_path):
    code = "import sys; from pathlib import Path; from forestgaps_jax.run_folder import held\n"
    code += "with held(Path(sys.argv[1])): pass"

    def entered_by_another() -> bool:
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
        return run.returncode == 0

    with held(tmp_path):
        with held(tmp_path):
            pass
        assert not entered_by_another()
    assert entered_by_another()
