"""A trained network comes back from its run folder as it was trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Config, predict
from forestgaps_jax.checkpoint import Checkpointer
from forestgaps_jax.inference import load_run


@pytest.fixture
def run(tmp_path, config, state):
    """A run of two checkpoints, of which the first is the best."""
    config.to_toml(tmp_path / "config.toml")
    states = {}
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        for name, step, score in (("best", 3, 0.9), ("last", 7, 0.2)):
            moved = jax.tree.map(lambda leaf, by=step: leaf + 0.01 * by, state.params)
            states[name] = type(state)(**{**vars(state), "params": moved, "step": jnp.int32(step)})
            checkpointer.save(states[name], {}, score)
    return tmp_path, states


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_run_predicts_as_it_was_saved(run, config, name):
    folder, states = run
    state, settings = load_run(folder, name)
    assert settings == config
    assert int(state.step) == {"best": 3, "last": 7}[name]
    dsm = np.random.default_rng(0).uniform(0, 20, (1, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(predict(state, dsm, 5.0), predict(states[name], dsm, 5.0))


def test_best_is_the_default_and_settings_can_be_others(run, config):
    folder, _ = run
    config.thresholds = (3.0,)
    state, settings = load_run(str(folder), config=config)
    assert (int(state.step), settings.thresholds) == (3, (3.0,))


def test_what_is_no_run_is_refused(run, config, tmp_path_factory):
    folder, _ = run
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match="is no run folder: there is no config"):
        load_run(empty)
    config.to_toml(empty / "config.toml")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_run(empty)
    with pytest.raises(ValueError, match="another model or optimizer"):
        load_run(folder, config=Config(features=2, depth=1, tile_size=16))


def test_there_are_two_checkpoints_to_choose_from(run):
    with pytest.raises(Exception, match="best"):
        load_run(run[0], "newest")  # type: ignore[arg-type]
