import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.optimization import create_scheduler

PEAK, LAST, START = 0.1, 0.001, 0.02


def rates(steps_per_epoch, count, **settings):
    """The rates of the first steps, at most 128: one shape, compiled once."""
    config = Config(**{"learning_rate": PEAK, "min_lr": LAST, "warmup_start_lr": START} | settings)
    return np.asarray(create_scheduler(config, steps_per_epoch)(jnp.arange(128)), np.float64)[:count]


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
def test_it_never_climbs_again_after_its_end(scheduler, warmup):
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
def test_warmup_as_long_as_the_run_or_longer_rises_to_its_end(warmup):
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


@pytest.mark.parametrize("steps", [0, -1])
def test_an_epoch_without_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps_per_epoch = {steps}: must be 1 or more"):
        create_scheduler(Config(), steps)
