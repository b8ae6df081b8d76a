"""Every schedule under any settings: its closed form in float64, its range, its jumps, its end."""

import math
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.optimization import create_scheduler, drop_path_rates, drop_path_schedule
from tests.optimization.test_lr_schedulers import TYPES, one_cycle

# The steps of the longest run here, and some long after any: one shape, compiled once.
STEPS = np.r_[0:100, 10**3, 10**6, 2**24 + 1, 2**31 - 1].astype(np.int32)
SHARES = st.floats(0, 1)
CHOSEN = st.fixed_dictionaries(
    {
        "epochs": st.integers(1, 6),
        "gradient_accumulation_steps": st.integers(1, 3),
        "learning_rate": st.floats(1e-5, 1.0),
        "warmup_epochs": st.one_of(st.just(0.0), st.floats(0, 8)),
        "cycle_epochs": st.floats(0.05, 8),
        "cycles": st.integers(1, 4),
        "cycle_mult": st.floats(0.5, 2),
        "step_size": st.floats(0.05, 4),
        "step_gamma": st.floats(0.3, 1),
        "exponential_gamma": st.floats(0.3, 1),
        "pct_start": st.floats(0.01, 0.99),
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
        "div_factor": st.floats(1, 50),
        "final_div_factor": st.floats(1, 1e4),
        # As shares of the learning rate, which they may not be above.
        "min_lr": SHARES,
        "warmup_start_lr": SHARES,
    }
)
ANY_RUN = given(CHOSEN, st.integers(1, 15))
EVERY = pytest.mark.parametrize("name", TYPES)


class Run:
    """A run's settings, and what follows from them in whole optimizer steps."""

    def __init__(self, name, chosen, steps_per_epoch):
        low = {name: chosen[name] * chosen["learning_rate"] for name in ("min_lr", "warmup_start_lr")}
        self.config = Config(scheduler_type=name, **chosen | low)
        self.config.validate()
        self.each, self.k = steps_per_epoch, self.config.gradient_accumulation_steps
        self.total = math.ceil(self.config.epochs * steps_per_epoch / self.k)
        self.warmup = min(self.steps(self.config.warmup_epochs), self.total - 1)
        self.batches = max(round(self.config.step_size * steps_per_epoch), 1)
        self.rates = np.asarray(jax.vmap(create_scheduler(self.config, steps_per_epoch))(STEPS), np.float64)

    def steps(self, epochs):
        return round(epochs * self.each / self.k)

    def cycles(self):
        """First and last step of each cycle that begins in the run."""
        ends, epochs = [0], 0.0
        for cycle in range(self.config.cycles):
            epochs += self.config.cycle_epochs * self.config.cycle_mult**cycle
            if ends[-1] < self.total:
                ends.append(max(self.steps(epochs), ends[-1] + 1))
        return list(pairwise(ends))

    def cosine(self, part):
        low, high = self.config.min_lr, self.config.learning_rate
        return low + (high - low) * (1 + math.cos(math.pi * min(part, 1.0))) / 2

    def closed_form(self, step):
        c, step = self.config, min(int(step), self.total)
        match c.scheduler_type:
            case "cosine":
                return self.cosine(step / self.total)
            case "cosine_warm" | "warmup_plateau" if step < self.warmup:
                return c.warmup_start_lr + (c.learning_rate - c.warmup_start_lr) * step / self.warmup
            case "cosine_warm":
                return self.cosine((step - self.warmup) / (self.total - self.warmup))
            case "cosine_restart":
                begin, end = next((cycle for cycle in self.cycles() if step < cycle[1]), self.cycles()[-1])
                return self.cosine((step - begin) / (end - begin))
            case "step":
                return c.learning_rate * c.step_gamma ** (step * self.k // self.batches)
            case "exponential":
                return c.learning_rate * c.exponential_gamma ** (step * self.k / self.each)
            case "onecycle":
                options = c.pct_start, c.anneal_strategy, c.div_factor, c.final_div_factor
                return one_cycle(self.total, 10 * c.learning_rate, *options)[min(step, self.total - 1)]
        return c.learning_rate


@EVERY
@settings(max_examples=15)
@ANY_RUN
def test_any_schedule_is_its_closed_form_and_stays_at_its_end_fault_04(name, chosen, steps_per_epoch):
    run = Run(name, chosen, steps_per_epoch)
    # A peak at the first step is a division by zero in PyTorch's formula.
    assume(name != "onecycle" or abs(chosen["pct_start"] * run.total - 1) > 1e-3)
    expected = [run.closed_form(step) for step in STEPS]
    np.testing.assert_allclose(run.rates, expected, rtol=1e-3, atol=1e-5 * run.config.learning_rate)
    np.testing.assert_array_equal(run.rates[run.total <= STEPS], run.rates[run.total])


@EVERY
@settings(max_examples=15)
@ANY_RUN
def test_any_schedule_keeps_its_range_and_jumps_only_where_it_should(name, chosen, steps_per_epoch):
    run = Run(name, chosen, steps_per_epoch)
    c, change = run.config, np.diff(run.rates[: run.total + 1])
    peak = c.learning_rate * (10 if name == "onecycle" else 1)
    lowest = {
        "cosine_warm": min(c.min_lr, c.warmup_start_lr),
        "warmup_plateau": c.warmup_start_lr,
        "onecycle": peak / c.div_factor / c.final_div_factor,
        "step": 0.0,
        "exponential": 0.0,
        "constant": peak,
        "plateau": peak,
    }.get(name, c.min_lr)
    slack = 1e-5 * peak
    assert lowest - slack <= run.rates.min() <= run.rates.max() <= peak + slack
    jumps = set((np.flatnonzero(np.abs(change) > steepest(run, peak) * 1.001 + slack) + 1).tolist())
    if name == "cosine_restart":
        starts = {begin for begin, _ in run.cycles()}
        assert jumps <= starts
        np.testing.assert_allclose(run.rates[sorted(starts)], peak, rtol=1e-5)
    elif name == "step":
        assert jumps <= {
            s for s in range(run.total + 1) if s * run.k // run.batches > (s - 1) * run.k // run.batches
        }
        assert (change <= 0).all()
    else:
        assert not jumps


def steepest(run, peak):
    """The most that a schedule without jumps changes in a step; of a cosine, half pi of its mean slope."""
    c, bend = run.config, math.pi / 2 * peak
    rise = peak / run.warmup if run.warmup else 0.0
    return {
        "cosine": bend / run.total,
        "cosine_warm": max(rise, bend / (run.total - run.warmup)),
        "cosine_restart": bend / min(end - begin for begin, end in run.cycles()),
        "warmup_plateau": rise,
        "exponential": peak * (1 - c.exponential_gamma ** (run.k / run.each)),
        "onecycle": bend
        / min(n for n in (c.pct_start * run.total - 1, (1 - c.pct_start) * run.total) if n > 0),
    }.get(c.scheduler_type, 0.0)


# Stochastic depth

RISES = {
    "linear": lambda p: p,
    "cosine": lambda p: (1 - np.cos(np.pi * p)) / 2,
    "exp": lambda p: np.expm1(5 * p) / np.expm1(5),
}


@pytest.mark.parametrize("strategy", RISES)
@settings(max_examples=15)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 6), st.integers(1, 15))
def test_the_chance_to_skip_is_its_closed_form_and_stays_at_its_end_fault_11(
    strategy, start, final, epochs, steps
):
    config = Config(
        epochs=epochs, droppath_start_prob=start, droppath_final_prob=final, droppath_strategy=strategy
    )
    found = np.asarray(jax.vmap(drop_path_schedule(config, steps))(STEPS), np.float64)
    way = RISES[strategy](np.minimum(STEPS / (0.8 * epochs * steps), 1.0))
    np.testing.assert_allclose(found, start + (final - start) * way, atol=1e-6)
    assert min(start, final) - 1e-7 <= found.min() <= found.max() <= max(start, final) + 1e-7
    np.testing.assert_allclose(found[0.8 * epochs * steps <= STEPS], np.float32(final), rtol=0, atol=1e-38)
    assert (
        np.abs(np.diff(found[:100])).max() <= abs(final - start) * min(1, 5.1 / (0.8 * epochs * steps)) + 1e-6
    )


@given(st.floats(0, 1), st.integers(1, 60))
def test_rates_of_blocks_are_evenly_spaced_chances_up_to_the_deepest(final, n):
    rates = drop_path_rates(final, n)
    np.testing.assert_allclose(rates, np.linspace(0, final, n + 1)[1:], rtol=1e-12, atol=1e-300)
    assert all(0 <= rate <= 1 for rate in rates)
