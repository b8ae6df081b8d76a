"""A training that is killed, terminated or finds its checkpoint damaged ends as if nothing had been."""

import random
import signal

import pytest

from tests.survival import DAMAGES, Runner, damage

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Runner:
    """A run that nothing has disturbed."""
    runner = Runner(tmp_path_factory.mktemp("whole"))
    assert runner.finish() == 0, runner.output
    return runner


def test_killed_and_terminated_at_any_moment_it_ends_bit_for_bit_as_if_never_stopped(whole, tmp_path):
    rng, runner = random.Random(0), Runner(tmp_path)
    kinds = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    codes = [runner.interrupt(kind, rng.uniform(0, 1)) for kind in kinds]
    assert set(codes) <= {0, -signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT}
    assert -signal.SIGKILL in codes
    # A save that was cut off in its midst is no checkpoint, whatever of it there is.
    assert runner.finish() == 0, runner.output
    assert "going on with" in runner.output
    assert runner.result() == whole.result()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_a_damaged_newest_checkpoint_is_passed_over_and_its_steps_are_taken_again(whole, tmp_path):
    rng, runner = random.Random(1), Runner(tmp_path)
    assert runner.interrupt(signal.SIGTERM, 0.0, after_step=3) == 128 + signal.SIGTERM
    for how in rng.sample(DAMAGES, 2):
        newest, before = runner.steps()[-1], runner.steps()[-2]
        damage(runner.run_folder / "checkpoints" / str(newest), how, rng)
        runner.interrupt(signal.SIGTERM, 0.0, after_step=newest + 2)
        assert "a damaged checkpoint is passed over" in runner.output
        assert f"; {before} is taken" in runner.output
        assert (runner.run_folder / "checkpoints" / f"{newest}.damaged").is_dir()
    assert runner.finish() == 0, runner.output
    assert runner.result() == whole.result()


def test_the_same_command_again_trains_nothing_more(whole):
    before = whole.result()
    log = (whole.run_folder / "metrics.jsonl").read_bytes()
    assert whole.finish() == 0
    assert whole.result() == before
    assert (whole.run_folder / "metrics.jsonl").read_bytes() == log
