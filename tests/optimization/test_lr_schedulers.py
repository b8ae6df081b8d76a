import inspect
import math
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.optimization import create_scheduler, learning_rates
from forestgaps_jax.settings import Settings

PEAK, LAST, START = 0.1, 0.001, 0.02
TYPES = get_args(get_type_hints(Settings)["scheduler_type"])


def rates(steps_per_epoch, count, **settings):
    """The rates of the first steps, at most 128: one shape, compiled once."""
    config = Config(**{"learning_rate": PEAK, "min_lr": LAST, "warmup_start_lr": START} | settings)
    schedule = jax.vmap(create_scheduler(config, steps_per_epoch))
    return np.asarray(schedule(jnp.arange(128)), np.float64)[:count]


def cosine(step, length, peak=PEAK, last=LAST):
    return last + (peak - last) * (1 + np.cos(np.pi * np.minimum(step, length) / length)) / 2


@pytest.mark.parametrize(("epochs", "steps"), [(3, 7), (1, 1), (10, 1), (1, 40)])
def test_cosine_is_its_closed_form_over_all_optimizer_steps(epochs, steps):
    count = np.arange(epochs * steps + 1)
    np.testing.assert_allclose(
        rates(steps, len(count), epochs=epochs), cosine(count, epochs * steps), rtol=1e-5
    )


@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0, 5.0, 9.0])
@pytest.mark.parametrize("scheduler", ["cosine", "cosine_warm"])
def test_it_never_climbs_again_after_its_end_fault_04(scheduler, warmup):
    total = 5 * 4
    after = rates(4, 5 * total, epochs=5, scheduler_type=scheduler, warmup_epochs=warmup)[total + 1 :]
    np.testing.assert_allclose(after, LAST, rtol=1e-4)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 2.0, 5.0, 9.0])
def test_min_lr_is_reached_at_the_end_of_the_run(warmup):
    total = 5 * 4
    at_end = rates(4, total + 1, epochs=5, scheduler_type="cosine_warm", warmup_epochs=warmup)[total]
    assert at_end == pytest.approx(LAST, rel=1e-4)


def test_warmup_starts_low_rises_evenly_and_anneals_from_the_peak():
    lr = rates(10, 61, epochs=6, scheduler_type="cosine_warm", warmup_epochs=2.0)
    np.testing.assert_allclose(lr[:21], np.linspace(START, PEAK, 21), rtol=1e-5)
    np.testing.assert_allclose(lr[20:], cosine(np.arange(41), 40), rtol=1e-5)
    assert lr.argmax() == 20


@pytest.mark.parametrize(("warmup", "peak_step"), [(0.5, 5), (0.31, 3), (1.25, 12), (0.0, 0), (0.01, 0)])
def test_warmup_may_be_a_part_of_an_epoch(warmup, peak_step):
    lr = rates(10, 31, epochs=3, scheduler_type="cosine_warm", warmup_epochs=warmup)
    assert lr.argmax() == peak_step
    assert lr.max() == pytest.approx(PEAK, rel=1e-6)


@pytest.mark.parametrize("warmup", [3.0, 4.0, 100.0])
def test_warmup_as_long_as_the_run_or_longer_rises_to_its_end_fault_04(warmup):
    lr = rates(4, 12, epochs=3, scheduler_type="cosine_warm", warmup_epochs=warmup)
    assert lr[0] == pytest.approx(START, rel=1e-5)
    np.testing.assert_allclose(np.diff(lr), np.diff(lr)[0], rtol=1e-3)
    assert PEAK - 1.01 * np.diff(lr)[0] <= lr[-1] <= PEAK * (1 + 1e-6)


def test_cosine_ignores_the_warmup_settings():
    np.testing.assert_array_equal(rates(4, 20, epochs=5), rates(4, 20, epochs=5, warmup_epochs=3.0))


def test_constant_where_both_ends_are_equal():
    np.testing.assert_allclose(rates(4, 50, epochs=5, min_lr=PEAK), PEAK, rtol=1e-6)


@settings(max_examples=12, deadline=None)
@given(epochs=st.integers(1, 5), steps=st.integers(1, 9), warmup=st.floats(0, 8), low=st.floats(0, 0.09))
def test_rates_stay_between_their_ends_and_have_one_peak(epochs, steps, warmup, low):
    lr = rates(
        steps, 60, epochs=epochs, scheduler_type="cosine_warm", warmup_epochs=warmup, warmup_start_lr=low
    )
    assert np.isfinite(lr).all()
    assert lr.min() >= min(low, LAST) - 1e-7  # float32 of a peak of 0.1
    assert lr.max() <= PEAK * (1 + 1e-5)
    turn = lr.argmax()
    assert (np.diff(lr[: turn + 1]) >= -1e-7).all()
    assert (np.diff(lr[turn:]) <= 1e-7).all()


def one_cycle(total, peak, pct_start=0.3, anneal="cos", div=25.0, final_div=1e4):
    """PyTorch's OneCycleLR.get_lr, for each step of the run."""

    def turn(start, end, part):
        if anneal == "linear":
            return (end - start) * part + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)

    first = peak / div
    phases = [(float(pct_start * total) - 1, first, peak), (total - 1, peak, first / final_div)]

    def rate(step):
        begin = 0.0
        for i, (end, low, high) in enumerate(phases):
            if step <= end or i == 1:
                return turn(low, high, (step - begin) / (end - begin))
            begin = end

    return [rate(step) for step in range(total)]


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(
    ("epochs", "steps", "pct"),
    [(5, 20, 0.3), (4, 7, 0.25), (3, 11, 0.45), (1, 2, 0.3), (1, 1, 0.5), (2, 30, 0.9)],
)
def test_onecycle_is_that_of_pytorch_over_optimizer_steps_fault_04(epochs, steps, pct, anneal):
    options = {"pct_start": pct, "anneal_strategy": anneal, "div_factor": 10.0, "final_div_factor": 100.0}
    got = rates(steps, epochs * steps, epochs=epochs, scheduler_type="onecycle", **options)
    expected = one_cycle(epochs * steps, 10 * PEAK, pct, anneal, 10.0, 100.0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_onecycle_peaks_within_the_run_and_ends_lowest_fault_04():
    """The original stepped it once an epoch: 4 steps of 80, never near the peak."""
    lr = rates(20, 80, epochs=4, scheduler_type="onecycle", max_lr=0.5)
    assert lr.argmax() == 23
    assert lr.max() == pytest.approx(0.5, rel=1e-3)
    assert lr[0] == pytest.approx(0.5 / 25, rel=1e-5)
    assert lr[-1] == pytest.approx(0.5 / 25e4, rel=1e-2)


@pytest.mark.parametrize("pct", [0.1, 0.25, 0.5])
def test_onecycle_of_a_peak_at_the_first_step_is_finite_fault_04(pct):
    """PyTorch divides by zero there."""
    total = round(1 / pct)
    lr = rates(1, total, epochs=total, scheduler_type="onecycle", pct_start=pct)
    assert lr[0] == pytest.approx(10 * PEAK)
    assert (np.diff(lr) < 0).all()


@pytest.mark.parametrize("name", TYPES)
def test_every_schedule_is_flat_after_its_end_fault_04(name):
    lr = rates(4, 128, epochs=6, scheduler_type=name, cycle_epochs=2.0, step_size=2.0, warmup_epochs=1.0)
    np.testing.assert_array_equal(lr[24:], lr[24])
    assert lr[24] <= lr[23]
    if name.startswith("cosine"):
        np.testing.assert_allclose(lr[24:], LAST, rtol=1e-4)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(1, 1, 5.0), (3, 4, 3.0), (2, 3, 0.0)])
def test_every_schedule_is_finite_however_short_the_run_fault_04(name, epochs, steps, warmup):
    lr = rates(
        steps, 20, epochs=epochs, scheduler_type=name, warmup_epochs=warmup, cycle_epochs=0.01, step_size=0.01
    )
    assert np.isfinite(lr).all()
    assert (lr >= 0).all()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("step", [7, np.int32(7), np.int64(7), np.asarray(7), jnp.int32(7)], ids=type)
def test_steps_may_be_python_numpy_or_traced(name, step):
    config = Config(epochs=3, scheduler_type=name, warmup_epochs=1.0, cycle_epochs=1.0, step_size=1.0)
    schedule = create_scheduler(config, 5)
    rate = np.asarray(schedule(step))
    assert rate.shape == ()
    np.testing.assert_allclose(rate, jax.jit(schedule)(7), rtol=1e-5)


def restarts(step, lengths):
    for length in lengths:
        if step < length:
            return cosine(step, length)
        step -= length
    return LAST


@pytest.mark.parametrize(("mult", "lengths"), [(1.0, [8, 8, 8]), (2.0, [8, 16, 32]), (0.5, [8, 4, 2])])
def test_restarts_are_cosines_with_min_lr_after_the_last_fault_04(mult, lengths):
    options = {"cycle_epochs": 2.0, "cycles": 3, "cycle_mult": mult}
    lr = rates(4, 100, epochs=25, scheduler_type="cosine_restart", **options)
    np.testing.assert_allclose(lr, [restarts(step, lengths) for step in range(100)], rtol=1e-4)


def test_a_cycle_that_would_begin_at_the_end_of_the_run_does_not_fault_04():
    lr = rates(4, 60, epochs=10, scheduler_type="cosine_restart", cycle_epochs=5.0, cycles=9)
    np.testing.assert_allclose(lr[:40], [restarts(step, [20, 20]) for step in range(40)], rtol=1e-4)
    np.testing.assert_allclose(lr[40:], LAST, rtol=1e-4)


def test_a_cycle_longer_than_the_run_is_cut():
    lr = rates(4, 30, epochs=5, scheduler_type="cosine_restart", cycle_epochs=10.0, cycle_mult=1e300)
    np.testing.assert_allclose(lr, cosine(np.minimum(np.arange(30), 20), 40), rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(1, 4),
    gamma=st.sampled_from([0.5, 0.9]),
    steps=st.integers(1, 7),
    k=st.integers(1, 3),
)
@example(size=3, gamma=0.5, steps=10, k=3)
@example(size=1, gamma=0.5, steps=41, k=1)
def test_step_is_that_of_pytorch_by_whole_epochs(size, gamma, steps, k):
    lr = rates(
        steps, 60 // k, epochs=60, scheduler_type="step", step_size=size, step_gamma=gamma,
        gradient_accumulation_steps=k,
    )  # fmt: skip
    epoch = np.arange(len(lr)) * k // steps
    np.testing.assert_allclose(lr, PEAK * gamma ** (epoch // size), rtol=1e-4)


def test_step_may_be_a_part_of_an_epoch_and_has_no_floor():
    lr = rates(10, 30, epochs=3, scheduler_type="step", step_size=0.3, step_gamma=0.1)
    np.testing.assert_allclose(lr, PEAK * 0.1 ** (np.arange(30) // 3), rtol=1e-4)
    assert lr[-1] < LAST


def test_exponential_falls_at_every_step_and_by_gamma_an_epoch():
    lr = rates(4, 41, epochs=10, scheduler_type="exponential", exponential_gamma=0.8)
    np.testing.assert_allclose(lr, PEAK * 0.8 ** (np.arange(41) / 4), rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_and_the_base_of_plateau_stay(name):
    np.testing.assert_allclose(rates(4, 99, epochs=5, scheduler_type=name), PEAK, rtol=1e-6)


def test_warmup_plateau_rises_and_stays():
    lr = rates(4, 40, epochs=8, scheduler_type="warmup_plateau", warmup_epochs=2.0)
    np.testing.assert_allclose(lr[:9], np.linspace(START, PEAK, 9), rtol=1e-5)
    np.testing.assert_allclose(lr[8:], PEAK, rtol=1e-6)


@pytest.mark.parametrize(("k", "total"), [(2, 15), (3, 10), (4, 8), (100, 1)])
def test_accumulated_batches_are_one_step_fault_04(k, total):
    """A run of 30 batches has ceil(30 / k) optimizer steps."""
    lr = rates(6, 40, epochs=5, gradient_accumulation_steps=k)
    np.testing.assert_allclose(lr[: total + 1], cosine(np.arange(total + 1), total), rtol=1e-4)
    np.testing.assert_allclose(lr[total:], LAST, rtol=1e-4)
    decay = rates(
        6, total, epochs=5, gradient_accumulation_steps=k, scheduler_type="exponential", exponential_gamma=0.5
    )
    np.testing.assert_allclose(decay, PEAK * 0.5 ** (np.arange(total) * k / 6), rtol=1e-4)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", ["cosine", "onecycle", "step"])
def test_learning_rates_are_those_of_the_last_steps(name, k):
    config = Config(epochs=6, scheduler_type=name, step_size=2.0, gradient_accumulation_steps=k)
    by_batch = np.repeat(np.asarray(jax.vmap(create_scheduler(config, 5))(jnp.arange(30))), k)
    np.testing.assert_array_equal(learning_rates(config, 5), by_batch[4:30:5])


def test_learning_rates_follow_the_metric_where_the_schedule_does():
    settings = {"epochs": 8, "learning_rate": PEAK, "min_lr": LAST, "plateau_patience": 1}
    iou = [0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]  # bad from the third on: falls after the 4th, 6th, 8th
    plateau = learning_rates(Config(**settings, scheduler_type="plateau"), 3, iou)
    np.testing.assert_allclose(plateau, [PEAK] * 4 + [0.01] * 2 + [0.001] * 2, rtol=1e-5)
    warm = Config(**settings, scheduler_type="warmup_plateau", warmup_epochs=4.0)
    # The fifth epoch is the first that counts, and the best.
    np.testing.assert_allclose(learning_rates(warm, 3, iou)[4:], [PEAK] * 3 + [0.01], rtol=1e-5)


@pytest.mark.parametrize("metric", [None, [0.5], [0.5] * 4])
def test_a_schedule_that_follows_a_metric_needs_one_value_an_epoch(metric):
    with pytest.raises(ValueError, match=r"follows val_iou: pass metric with one value for each of the 3"):
        learning_rates(Config(epochs=3, scheduler_type="plateau"), 5, metric)


@pytest.mark.parametrize("steps", [0, -1])
def test_an_epoch_without_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps_per_epoch = {steps}: must be 1 or more"):
        create_scheduler(Config(), steps)


@pytest.mark.parametrize("given", [(optax.adam(0.1), Config()), (Config(), 2.5), (10, Config())])
def test_pytorchs_order_of_arguments_is_a_type_error(given):
    with pytest.raises(TypeError, match=r"must be create_scheduler\(config, steps_per_epoch\)"):
        inspect.unwrap(create_scheduler)(*given)  # past the type checker of the test run
