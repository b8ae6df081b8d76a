"""The callbacks that measure: learning rate, time, profile."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from forestgaps_jax.callbacks import LambdaCallback, LearningRateMonitor, LoggingCallback, Profiler, Timer
from forestgaps_jax.callbacks import timing as timing_module
from tests.callbacks.driving import STEPS, drive, new_run, read_scalars, scores


def test_the_learning_rate_of_every_step_is_recorded(state, config, tmp_path):
    run = new_run(state, config, folder=tmp_path)
    monitor = LearningRateMonitor()
    drive(run, [LoggingCallback(), monitor], [scores(), scores()])
    expected = [0.1 / (step + 1) for step in range(2 * STEPS)]
    assert monitor.steps == [*range(2 * STEPS)]
    assert monitor.rates == pytest.approx(expected)
    scalars = read_scalars(tmp_path)
    assert [scalars["learning_rate/step", step] for step in monitor.steps] == pytest.approx(expected)


def test_no_rate_is_fetched_within_an_epoch(state, config):
    class OnDevice:
        """A device value that nobody may turn into a number before the epoch ends."""

        ended = False

        def __float__(self):
            assert self.ended
            return 0.5

        def __array__(self, *_, **__):
            return np.array(float(self))

    rate, monitor = OnDevice(), LearningRateMonitor()
    monitor.run = new_run(state, config)
    monitor.on_train_begin()
    monitor.on_epoch_begin(0)
    monitor.on_batch_end(0, {"epoch": 0, "metrics": {"lr": rate}})
    assert monitor.rates == []
    OnDevice.ended = True
    monitor.on_epoch_end(0)
    assert monitor.rates == [0.5]


def test_a_rate_that_only_the_optimizer_knows_is_not_sent_to_tensorboard(state, config, tmp_path):
    monitor = LearningRateMonitor()
    hide = LambdaCallback(on_batch_end=lambda batch, logs: logs["metrics"].update(lr=math.nan))
    drive(new_run(state, config, folder=tmp_path), [LoggingCallback(), hide, monitor], [scores()])
    assert all(math.isnan(rate) for rate in monitor.rates)
    assert not [tag for tag, _ in read_scalars(tmp_path) if tag == "learning_rate/step"]


class Clock:
    """A clock that moves only when told."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, first: float, others: float) -> LambdaCallback:
        """Steps that last so many seconds; between epochs passes an hour."""

        def step(batch, logs):
            self.now += first if (logs["epoch"], batch) == (0, 0) else others

        def rest(epoch, logs):
            self.now += 3600.0

        return LambdaCallback(on_batch_begin=step, on_epoch_end=rest)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing_module, "time", clock)
    return clock


def test_the_time_of_a_step_is_without_compilation_and_validation(state, config, tmp_path, clock):
    run = new_run(state, replace(config, epochs=4), folder=tmp_path)
    timer = Timer()
    drive(run, [LoggingCallback(), clock.takes(first=60.0, others=0.5), timer], [scores()] * 3)
    assert timer.ms_per_step == pytest.approx([500.0] * 3)
    assert timer.tiles_per_second == pytest.approx([8.0] * 3)
    assert timer.seconds_left == pytest.approx((3.0 + 4.0) / 2)
    scalars = read_scalars(tmp_path)
    assert [scalars["timer/seconds_left", epoch] for epoch in range(3)] == pytest.approx([6.0, 6.0, 3.5])
    assert scalars["timer/ms_per_step", 0] == pytest.approx(500.0)
    assert scalars["timer/tiles_per_second", 2] == pytest.approx(8.0)


def test_an_epoch_of_the_compiling_step_alone_has_no_speed(state, config, clock):
    timer = Timer()
    drive(new_run(state, config, steps=1), [clock.takes(first=60.0, others=0.5), timer], [scores(), scores()])
    assert math.isnan(timer.ms_per_step[0])
    assert math.isnan(timer.tiles_per_second[0])
    assert timer.ms_per_step[1] == pytest.approx(500.0)


class InFlight:
    """A value of a step that the device has not finished; whoever waits for it is written down."""

    def __init__(self, number: int, waited: list[int]):
        self.number, self.waited = number, waited

    def block_until_ready(self):
        self.waited.append(self.number)
        return self


def in_flight(waited: list[int]) -> LambdaCallback:
    """Gives the steps of epoch 0 the values 0, 1, 2, those of epoch 1 10, 11, 12."""
    return LambdaCallback(
        on_batch_end=lambda batch, logs: logs.update(
            metrics={"loss": InFlight(10 * logs["epoch"] + batch, waited)}
        )
    )


def test_the_timer_waits_for_the_first_step_and_the_last_of_each_epoch_only(state, config):
    waited: list[int] = []
    drive(new_run(state, config), [in_flight(waited), Timer()], [scores(), scores()])
    assert waited == [0, STEPS - 1, 10 + STEPS - 1]


def test_a_profile_ends_when_the_device_has_done_the_last_step(state, config, tmp_path, monkeypatch):
    waited: list[int] = []
    ended: list[list[int]] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: ended.append([*waited]))
    drive(new_run(state, config), [in_flight(waited), Profiler(0, 1, tmp_path)], [scores(), scores()])
    assert ended == [[1]] == [waited]


def test_a_timer_can_serve_two_trainings(state, config, clock):
    timer = Timer()
    for _ in range(2):
        drive(new_run(state, config), [clock.takes(first=60.0, others=0.5), timer], [scores()])
        assert timer.ms_per_step == pytest.approx([500.0])


def traces(folder) -> list:
    return list(folder.rglob("*.xplane.pb"))


@pytest.mark.parametrize("stop", [False, True], ids=["whole", "cut short"])
def test_a_trace_is_written_also_where_the_training_ends_early(state, config, tmp_path, stop):
    run = new_run(state, config, folder=tmp_path)
    profiler = Profiler(STEPS - 1, STEPS if not stop else 99)
    seen = []
    look = LambdaCallback(on_batch_end=lambda batch, logs: seen.append(len(traces(tmp_path))))
    drive(run, [profiler, look], [scores(), scores()])
    (trace,) = traces(tmp_path / "profile")
    assert trace.stat().st_size > 0
    assert seen == ([0] * 6 if stop else [0, 0, 0, 1, 1, 1])


def test_a_trace_can_go_to_another_folder(state, config, tmp_path):
    drive(new_run(state, config), [Profiler(1, 1, tmp_path / "mine")], [scores()])
    assert len(traces(tmp_path / "mine")) == 1


def test_steps_that_never_come_are_told(state, config, tmp_path, caplog):
    drive(new_run(state, config, folder=tmp_path), [Profiler(50, 60)], [scores()])
    assert "no profile: the training took no step from 50 to 60" in caplog.text
    assert not traces(tmp_path)


def test_a_profile_without_a_folder_is_refused_at_the_start(state, config):
    with pytest.raises(ValueError, match=r"no folder for a profile: give config\.name, or folder"):
        drive(new_run(state, config), [Profiler(1, 2)], [])


@pytest.mark.parametrize("steps", [(-1, 2), (3, 2)])
def test_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(ValueError, match=f"first_step = {steps[0]}, last_step = 2"):
        Profiler(*steps)
