import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.optimization import Plateau, create_plateau, metric_mode


class ReduceLROnPlateau:
    """PyTorch's, with eps=0, a rate of 1 and, on request, a relative threshold that is a share of a size."""

    def __init__(self, plateau, share_of_size):
        self.p, self.share_of_size = plateau, share_of_size
        self.lr, self.best = 1.0, math.inf if plateau.mode == "min" else -math.inf
        self.cooldown_counter = self.num_bad_epochs = 0

    def is_better(self, a, best):
        threshold = self.p.threshold
        if self.p.threshold_mode == "rel" and self.share_of_size and best < 0:
            threshold = -threshold
        if self.p.mode == "min" and self.p.threshold_mode == "rel":
            return a < best * (1.0 - threshold)
        if self.p.mode == "min":
            return a < best - threshold
        if self.p.threshold_mode == "rel":
            return a > best * (threshold + 1.0)
        return a > best + threshold

    def step(self, metrics):
        if self.is_better(metrics, self.best):
            self.best = metrics
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.p.patience:
            self.lr = max(self.lr * self.p.factor, self.p.min_scale)
            self.cooldown_counter = self.p.cooldown
            self.num_bad_epochs = 0
        return self.lr


@partial(jax.jit, static_argnums=0)
def _scales(plateau, values):
    def step(state, value):
        state = plateau.update(state, value)
        return state, state.scale

    return jax.lax.scan(step, plateau.init(), values)[1]


def scales(plateau, values):
    """The scale after each value."""
    return np.asarray(_scales(plateau, jnp.asarray(values, jnp.float32)))


# Eighths and quarters: float32 and float64 agree on every comparison, ties too.
VALUES = st.lists(
    st.one_of(st.integers(-24, 24).map(lambda i: i / 8), st.sampled_from([math.nan, math.inf, -math.inf])),
    min_size=30,
    max_size=30,
)
PLATEAUS = [
    Plateau("min", 0.5, 2, 0.25, "rel", cooldown=0),
    Plateau("max", 0.5, 1, 0.25, "rel", cooldown=2),
    Plateau("min", 0.5, 0, 0.5, "abs", cooldown=1, min_scale=0.3),
    Plateau("max", 0.5, 3, 0.5, "abs", cooldown=3),
    Plateau("min", 0.5, 1, 0.0, "rel", cooldown=0, min_scale=0.01),
    Plateau("max", 0.5, 0, 0.0, "abs", cooldown=0),
]


@settings(max_examples=40, deadline=None)
@given(values=VALUES)
@example(values=[math.nan] * 30)
@example(values=[-1.0] * 30)
@pytest.mark.parametrize("plateau", PLATEAUS, ids=str)
def test_it_reduces_when_pytorch_does(plateau, values):
    oracle = ReduceLROnPlateau(plateau, share_of_size=True)
    np.testing.assert_allclose(scales(plateau, values), [oracle.step(v) for v in values], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(values=VALUES)
@pytest.mark.parametrize("plateau", PLATEAUS, ids=str)
def test_for_metrics_from_0_on_it_is_pytorch_to_the_letter(plateau, values):
    values = [abs(v) for v in values]
    oracle = ReduceLROnPlateau(plateau, share_of_size=False)
    np.testing.assert_allclose(scales(plateau, values), [oracle.step(v) for v in values], rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(
    VALUES,
    st.builds(
        Plateau,
        mode=st.sampled_from(["min", "max"]),
        factor=st.floats(0.01, 0.99),
        patience=st.integers(0, 5),
        threshold=st.sampled_from([0.0, 0.125, 0.5, 2.0]),
        threshold_mode=st.sampled_from(["rel", "abs"]),
        cooldown=st.integers(0, 5),
        min_scale=st.floats(0, 1),
    ),
    st.integers(0, 96).map(lambda i: i / 8),
)
def test_any_plateau_falls_as_pytorchs_does_after_its_warmup_and_stays_in_its_range(values, plateau, warmup):
    found = scales(replace(plateau, warmup_epochs=warmup), values)
    oracle, begin = ReduceLROnPlateau(plateau, share_of_size=True), math.ceil(warmup)
    expected = [1.0] * begin + [oracle.step(value) for value in values[begin:]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-38)
    assert (np.diff(found) <= 0).all()
    assert found.min() >= plateau.min_scale * (1 - 1e-6)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [-1.0, -1e3, 0.0, 0.7, math.nan])
def test_a_metric_that_stands_still_reduces_whatever_its_sign(mode, value):
    """In PyTorch and optax a negative one never does."""
    reductions = scales(Plateau(mode, factor=0.5, patience=2), [value] * 7)
    first = 2 if math.isnan(value) else 3
    np.testing.assert_allclose(reductions, 0.5 ** np.maximum((np.arange(7) - first) // 3 + 1, 0), rtol=1e-6)


@pytest.mark.parametrize(("warmup", "first"), [(0.0, 0), (3.0, 3), (2.5, 3)])
def test_nothing_counts_before_the_warmup_has_ended(warmup, first):
    values = np.linspace(0.9, 0.1, 12)  # worse each epoch; the best lies in the warmup
    plateau = Plateau("max", factor=0.5, patience=1, warmup_epochs=warmup)
    late = scales(Plateau("max", factor=0.5, patience=1), values[first:])
    np.testing.assert_allclose(scales(plateau, values), [*[1.0] * first, *late])


def test_update_compiles_once_and_keeps_types():
    plateau = Plateau("min", patience=0)
    update = jax.jit(plateau.update)
    state = plateau.init()
    for value in (1.0, 2.0, jnp.float32(3.0)):
        after = update(state, value)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        state = after
    assert float(state.scale) == pytest.approx(0.01)
    assert int(state.epochs) == 3


def test_a_metric_of_many_numbers_is_refused():
    plateau = Plateau()
    with pytest.raises(ValueError, match=r"shape \(2,\): must be one number"):
        plateau.update(plateau.init(), jnp.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor = 1.0: must be between 0 and 1"),
        ({"factor": 0.0}, "factor = 0.0"),
        ({"patience": -1}, "patience = -1: must be 0 or more"),
        ({"threshold": -0.1}, "threshold = -0.1"),
        ({"cooldown": -1}, "cooldown = -1"),
        ({"warmup_epochs": math.nan}, "warmup_epochs = nan"),
        ({"min_scale": 1.1}, "min_scale = 1.1: must be from 0 to 1"),
    ],
)
def test_senseless_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Plateau(**options)


@pytest.mark.parametrize("name", ["cosine", "step", "constant", "onecycle"])
def test_other_schedules_follow_no_metric(name):
    assert create_plateau(Config(scheduler_type=name)) is None


def test_the_settings_reach_the_plateau():
    config = Config(
        scheduler_type="warmup_plateau", learning_rate=0.1, min_lr=0.02, warmup_epochs=3.0,
        plateau_factor=0.3, plateau_patience=4, plateau_threshold=0.5, plateau_threshold_mode="abs",
        plateau_cooldown=2,
    )  # fmt: skip
    plateau = create_plateau(config)
    assert plateau == Plateau("max", 0.3, 4, 0.5, "abs", 2, 0.02 / 0.1, 3.0)
    config.scheduler_type = "plateau"
    assert create_plateau(config).warmup_epochs == 0


@pytest.mark.parametrize(
    ("metric", "monitor", "plateau", "mode"),
    [
        ("val_loss", "auto", "auto", "min"),
        ("val_iou", "auto", "auto", "max"),
        ("val_loss", "max", "auto", "max"),
        ("val_loss", "max", "min", "min"),
        ("val_iou", "auto", "min", "min"),
        ("val_mcc", "min", "max", "max"),
    ],
)
def test_the_mode_is_given_or_follows_from_the_metric(metric, monitor, plateau, mode):
    config = Config(
        scheduler_type="plateau", monitor_metric=metric, monitor_mode=monitor, plateau_mode=plateau
    )
    assert create_plateau(config).mode == mode


def test_less_of_losses_and_errors_is_better_fault_02():
    minimised = ["loss", "train_loss", "val_error_rate", "val_error_rate_10m", "val_error_rate_2.5m"]
    minimised += ["val_mse", "val_rmse", "val_mae", "val_mae_10m"]
    assert {metric_mode(name) for name in minimised} == {"min"}
    maximised = ["val_iou", "val_iou_10m", "val_r2", "val_mcc", "val_f1", "val_dice", "val_accuracy"]
    assert {metric_mode(name) for name in maximised} == {"max"}
