from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax import Config, TrainState, create_model, create_state
from forestgaps_jax.checkpoint import Checkpointer, best, latest, restore, restore_one, save_one


def new_state(features: int = 4, depth: int = 1, model: str = "unet_film", **settings) -> TrainState:
    network = create_model(model, rngs=nnx.Rngs(0), features=features, depth=depth)
    return create_state(network, Config(**settings))


def at_step(state: TrainState, step: int) -> TrainState:
    params = jax.tree.map(lambda leaf: leaf + step, state.params)
    return replace(state, step=jnp.asarray(step, jnp.int32), params=params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four checkpoints: the best is the second, the last the fourth, the third has no score."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = new_state(seed=7)
    with Checkpointer(folder) as checkpointer:
        for step, score in ((10, 0.1), (20, 0.9), (30, float("nan")), (40, 0.5)):
            checkpointer.save(at_step(state, step), {"epoch": step // 10, "loss": [0.5, None]}, score)
    return folder


def test_what_is_restored_is_what_was_saved_bit_for_bit(folder):
    expected, (state, info, *_) = at_step(new_state(seed=7), 20), restore(folder, new_state(), 20)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert info == {"epoch": 2, "loss": [0.5, None]}


def test_the_two_newest_and_the_best_are_kept_and_nothing_else(folder):
    assert sorted(int(path.name) for path in folder.iterdir()) == [20, 30, 40]
    assert (latest(folder), best(folder)) == (40, 20)
    assert int(restore(folder, new_state()).state.step) == 40


def test_without_scores_the_best_is_the_newest(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(at_step(new_state(), step), {})
    assert best(tmp_path) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    for loss in (0.5, 0.25):
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(at_step(new_state(), 3), {"loss": loss})
    assert restore(tmp_path, new_state()).info == {"loss": 0.25}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"features": 8}, r"is float32\[\d+\] in the checkpoint, float32\[\d+\] in the model"),
        ({"depth": 2}, "model"),
        ({"model": "unet"}, "embed.* is only in the checkpoint"),
        ({"optimizer": "sgd"}, "opt_state/.* is only in the checkpoint"),
    ],
    ids=str,
)
def test_another_model_or_optimizer_is_refused_with_the_leaf_that_differs(folder, other, message):
    with pytest.raises(ValueError, match=message):
        restore(folder, new_state(**other))


def test_a_missing_checkpoint_is_named_with_those_there_are(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 10 .*\[20, 30, 40\]"):
        restore(folder, new_state(), 10)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        restore(tmp_path / "nowhere", new_state())
    assert best(tmp_path) is None


def test_reading_makes_no_folder(tmp_path):
    latest(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_a_checkpoint_is_a_pickle(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not any(path.read_bytes()[:2] in (b"\x80\x03", b"\x80\x04", b"\x80\x05") for path in files)


def test_a_restored_state_compiles_no_step_anew(tmp_path):
    state = new_state()
    save_one(tmp_path / "one", state, {})
    with Checkpointer(tmp_path / "many") as checkpointer:
        checkpointer.save(state, {})
    step = jax.jit(lambda state, totals: (replace(state, step=state.step + 1), totals + 1))
    for start in (state, restore_one(tmp_path / "one", state).state, restore(tmp_path / "many", state).state):
        after, totals = step(start, jnp.zeros(()))
        step(after, totals)
    assert step._cache_size() == 1


def test_everything_that_a_training_changes_comes_back(tmp_path):
    settings = {
        "scheduler_type": "plateau",
        "ema_decay": 0.9,
        "loss_type": "adaptive",
        "gradient_accumulation_steps": 2,
        "use_gradient_clipping": True,
    }
    state = new_state(**settings)
    moved = jax.tree.map(
        lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf + 1, state
    )
    save_one(tmp_path / "one", moved, {})
    restored = restore_one(tmp_path / "one", state).state
    for part in ("step", "params", "opt_state", "loss_params", "ema_params", "plateau"):
        leaves, again = (jax.tree.leaves(getattr(s, part)) for s in (moved, restored))
        assert leaves, part
        assert all(np.array_equal(a, b) for a, b in zip(leaves, again, strict=True)), part
    for other in ({"ema_decay": 0.0}, {"scheduler_type": "cosine"}, {"loss_type": "focal"}):
        with pytest.raises(ValueError, match="is only in the checkpoint"):
            restore_one(tmp_path / "one", new_state(**settings | other))
