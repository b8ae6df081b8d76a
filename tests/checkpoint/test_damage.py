"""What is torn, cut off, changed or foreign is never taken for a checkpoint that was saved."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from forestgaps_jax import checkpoint
from forestgaps_jax.checkpoint import Checkpointer, DamagedCheckpoint, best, latest, restore, set_aside
from forestgaps_jax.checkpoint import contents as checkpoint_contents
from tests.checkpoint.test_reading import at_step, new_state
from tests.conftest import TINY, flags_of_devices
from tests.survival import DAMAGES, damage

SCORES = {10: 0.9, 20: 0.5, 30: 0.7}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three checkpoints, the best of which is the first."""
    folder = tmp_path_factory.mktemp("whole")
    state = new_state()
    with Checkpointer(folder, keep_last=3) as checkpointer:
        for step, score in SCORES.items():
            info = {"epoch": step, "config": TINY.to_dict()}
            checkpointer.save(at_step(state, step), info, score, {"totals": [np.arange(3)]})
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """One's own copy."""
    return shutil.copytree(whole, tmp_path / "checkpoints")


def assert_is(saved: checkpoint.Checkpoint, step: int) -> None:
    assert int(saved.state.step) == saved.info["epoch"] == step
    expected = at_step(new_state(), step)
    for part in ("params", "opt_state", "model_state"):
        leaves = (jax.tree.leaves(getattr(state, part)) for state in (saved.state, expected))
        assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    np.testing.assert_array_equal(saved.progress["totals"][0], np.arange(3))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_read(whole, folder, how, caplog):
    state = new_state()
    for seed in range(6):
        shutil.rmtree(folder / "30")
        shutil.copytree(whole / "30", folder / "30")
        path = damage(folder / "30", how, random.Random(seed))
        caplog.clear()
        saved = restore(folder, state)
        assert_is(saved, 20)
        assert saved.damaged == (30,)
        assert "a damaged checkpoint is passed over" in caplog.text
        assert "; 20 is taken" in caplog.text
        assert (path.name if how != "folder emptied" else "record.json") in caplog.text


def test_the_best_survives_the_newest_and_the_next_best_stands_in_for_it(folder, caplog):
    damage(folder / "30", "bit flipped", random.Random(0))
    assert_is(restore(folder, new_state(), "best"), 10)
    assert not caplog.records
    (folder / "10" / "record.json").unlink()
    assert best(folder) in (20, 30)
    saved = restore(folder, new_state(), "best")
    assert_is(saved, 20)


def test_one_that_is_asked_for_by_its_step_is_an_error_when_it_is_damaged(folder):
    (folder / "20" / "record.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint, match=r"20/record\.json is not what was written"):
        restore(folder, new_state(), 20)
    assert latest(folder) == 30


def test_where_all_are_damaged_nothing_is_made_up(folder):
    for step in SCORES:
        damage(folder / str(step), "emptied", random.Random(step))
    with pytest.raises(DamagedCheckpoint, match=r"\[30, 20, 10\] are all damaged"):
        restore(folder, new_state())


def test_a_file_that_does_not_belong_there_is_damage(folder):
    (folder / "30" / "state" / "more").write_text("?")
    with pytest.raises(DamagedCheckpoint, match="30/state/more is not of this checkpoint"):
        restore(folder, new_state(), 30)


def test_one_that_was_put_into_the_place_of_another_is_damage(folder):
    shutil.rmtree(folder / "30")
    shutil.copytree(folder / "20", folder / "30")
    with pytest.raises(DamagedCheckpoint, match="30 holds step 20"):
        restore(folder, new_state(), 30)


def test_what_is_no_folder_and_what_cannot_be_read_is_passed_over(folder):
    (folder / "99").write_text("not a checkpoint")
    (folder / "30" / "record.json").unlink()
    (folder / "30" / "record.json").mkdir()
    assert_is(restore(folder, new_state()), 20)
    assert latest(folder) == 20


def test_one_that_was_being_replaced_when_the_process_was_killed_is_found(folder, tmp_path):
    (folder / "30").rename(folder / "30.old")
    shutil.copytree(folder / "20", folder / "30.new")
    assert_is(restore(folder, new_state()), 30)
    checkpoint.save_one(tmp_path / "one", at_step(new_state(), 7), {})
    (tmp_path / "one").rename(tmp_path / "one.old")
    assert int(checkpoint.restore_one(tmp_path / "one", new_state()).state.step) == 7


def test_a_damaged_best_is_set_aside_at_the_next_start_so_that_another_can_be_the_best(folder):
    damage(folder / "10" / "state", "bit flipped", random.Random(0))
    with Checkpointer(folder) as checkpointer:
        for step, score in ((40, 0.8), (50, 0.1), (60, 0.2)):
            checkpointer.save(at_step(new_state(), step), {"epoch": step}, score)
    assert (folder / "10.damaged").is_dir()
    assert int(restore(folder, new_state(), "best").state.step) == 40


def test_damaged_ones_are_set_aside_for_a_look_and_their_steps_are_free(folder):
    for _ in range(2):
        set_aside(folder, [30])
        shutil.copytree(folder / "20", folder / "30")
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20", "30", "30.damaged", "30.damaged1"]


def test_what_a_killed_save_has_left_is_cleared_away(folder):
    for name in ("40.new.orbax-checkpoint-tmp", "40.new", "20.old", "7.gone"):
        (folder / name / "state").mkdir(parents=True)
    (folder / "30").rename(folder / "30.old")  # killed when it was to be replaced
    with Checkpointer(folder, keep_last=3):
        assert sorted(path.name for path in folder.iterdir()) == ["10", "20", "30"]
    assert_is(restore(folder, new_state()), 30)


def test_a_checkpoint_of_a_newer_version_says_so(folder, monkeypatch):
    monkeypatch.setattr(checkpoint_contents, "FORMAT", 99)
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(at_step(new_state(), 40), {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 99, of forestgaps-jax .*pip install --upgrade"):
        restore(folder, new_state())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"thresholds": (5.0, 9.0)}, r"other thresholds: thresholds = \[5.0, 15.0\] .* \[5.0, 9.0\] here"),
        ({"epochs": 99, "learning_rate": 1.0}, None),
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_a_training_that_goes_on_are_compared(folder, changed, message):
    settings = TINY.to_dict() | changed
    if message is None:
        assert_is(restore(folder, new_state(), settings=settings), 30)
        return
    with pytest.raises(ValueError, match=message):
        restore(folder, new_state(), settings=settings)


def test_another_network_is_refused_with_the_settings_that_make_it_so(folder):
    settings = TINY.to_dict() | {"features": 8}
    with pytest.raises(ValueError, match=r"settings that differ: features = 4 in the checkpoint, 8 here"):
        restore(folder, new_state(features=8), settings=settings)


def test_opening_one_runs_no_code(folder, monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    assert_is(restore(folder, new_state()), 30)
    record = json.loads((folder / "30" / "record.json").read_text())
    assert set(record) == {"format", "step", "versions", "score", "leaves", "files", "info", "digest"}
    assert record["versions"]["jax"] == jax.__version__


def test_it_is_read_whatever_the_number_of_devices_that_wrote_it(tmp_path):
    code = textwrap.dedent("""
        import sys
        import jax
        from jax.sharding import NamedSharding, PartitionSpec
        from forestgaps_jax.checkpoint import restore_one, save_one
        from tests.checkpoint.test_reading import at_step, new_state

        assert jax.device_count() == 4
        mesh = jax.make_mesh((4,), ("data",))
        state = at_step(restore_one(sys.argv[1], new_state()).state, 5)
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        save_one(sys.argv[2], state, {})
    """)
    one, four = tmp_path / "one", tmp_path / "four"
    checkpoint.save_one(one, new_state(seed=3), {})
    environment = {**os.environ, "XLA_FLAGS": flags_of_devices(4)}
    subprocess.run([sys.executable, "-c", code, str(one), str(four)], check=True, env=environment)
    restored, expected = checkpoint.restore_one(four, new_state()).state, at_step(new_state(seed=3), 5)
    for a, b in zip(jax.tree.leaves(restored.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(a, b)
        assert len(a.sharding.device_set) == 1
