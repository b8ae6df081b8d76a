"""Many trainings at once give what each of them gives alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Data, create_state, train, train_many
from forestgaps_jax.models import create_model_from_config
from tests.conftest import TINY

RATES = (1e-3, 1e-2)


@pytest.fixture(scope="module")
def alone(data):
    """Configurations, first states, and what `train` makes of each."""
    configs = [
        replace(TINY, seed=seed, learning_rate=rate, loss_alpha=0.3 + 0.2 * seed)
        for seed, rate in enumerate(RATES)
    ]
    states = [create_state(create_model_from_config(c), c) for c in configs]
    return configs, states, [train(s, c, data) for s, c in zip(states, configs, strict=True)]


@pytest.mark.parametrize("vectorized", [False, True])
def test_each_member_is_trained_as_it_would_be_alone(vectorized, alone, data):
    configs, states, expected = alone
    trained, histories = train_many(states, configs, data, vectorized=vectorized)
    close = {"rtol": 1e-3, "atol": 1e-4} if vectorized else {"rtol": 1e-6}
    for state, history, (own_state, own_history) in zip(trained, histories, expected, strict=True):
        assert history.keys() == own_history.keys()
        for name in ("train_loss", "val_loss", "lr"):
            np.testing.assert_allclose(history[name], own_history[name], **close)
        assert int(state.step) == int(own_state.step)
        for ours, own in zip(jax.tree.leaves(state.params), jax.tree.leaves(own_state.params), strict=True):
            np.testing.assert_allclose(ours, own, rtol=close["rtol"], atol=1e-3 if vectorized else 1e-6)
        for part in ("train_metrics", "val_metrics"):
            assert [m["n_pixels"] for m in history[part]] == [m["n_pixels"] for m in own_history[part]]
    assert histories[0]["train_loss"] != histories[1]["train_loss"]


def test_the_states_given_stay_usable_and_training_goes_on_from_the_result(alone, data):
    configs, states, _ = alone
    half = [replace(c, epochs=1, scheduler_type="constant") for c in configs]
    whole = [replace(c, epochs=2, scheduler_type="constant") for c in configs]
    first, _ = train_many(states, half, data)
    second, history = train_many(first, whole, data)
    at_once, _ = train_many(states, whole, data)
    assert len(history[0]["train_loss"]) == 1
    for ours, own in zip(jax.tree.leaves(second), jax.tree.leaves(at_once), strict=True):
        if not jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(ours, own)


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_member_that_diverges_stays_while_the_others_go_on(vectorized, alone, data, caplog):
    configs, states, _ = alone
    broken = replace(states[1], params=jax.tree.map(lambda leaf: leaf * jnp.nan, states[1].params))
    trained, histories = train_many([states[0], broken], configs, Data(data.train), vectorized=vectorized)
    assert np.isfinite(histories[0]["train_loss"]).all()
    assert np.isnan(histories[1]["train_loss"]).all()
    assert int(trained[0].skipped) == 0
    assert "member 1 has diverged" in caplog.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "sgd"}, "another optimizer than"),
        ({"epochs": 7}, r"differs from the first in .*epochs \(\d+ and 7\)"),
        ({"thresholds": (5.0, 11.0, 19.0)}, "differs from the first in .*thresholds"),
        ({"use_early_stopping": True}, "are trained by train"),
        ({"scheduler_type": "plateau"}, "are trained by train"),
        ({"learning_rate": 1e-9}, "above learning_rate"),
    ],
    ids=str,
)
def test_members_that_no_one_step_can_train_are_refused(settings, told, alone, data):
    configs, states, _ = alone
    with pytest.raises(ValueError, match=told):
        train_many(states, [configs[0], replace(configs[1], **settings)], data)


def test_states_that_do_not_fit_are_refused(alone, data):
    configs, states, _ = alone
    with pytest.raises(ValueError, match="2 states and 1 configs"):
        train_many(states, configs[:1], data)
    with pytest.raises(ValueError, match="0 states"):
        train_many([], configs[0], data)
    wider = replace(configs[1], features=2 * configs[1].features)
    other = create_state(create_model_from_config(wider), configs[1])
    with pytest.raises(ValueError, match="member 1 has another network"):
        train_many([states[0], other], configs, data)
    with pytest.raises(ValueError, match="equally many steps"):
        train_many([states[0], replace(states[1], step=jnp.int32(1))], configs, data)
