from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax import Config, create_model, create_state, evaluate, predict, train


@pytest.fixture
def model() -> nnx.Module:
    return create_model("unet_film", rngs=nnx.Rngs(3), features=4, depth=1)


def test_apply_gives_what_the_module_gives(model):
    state = create_state(model, Config())
    dsm, threshold = jnp.linspace(0.0, 30.0, 128).reshape(2, 8, 8, 1), jnp.array([5.0, 10.0])
    logits, model_state = state.apply(state.params, state.model_state, dsm, threshold)
    np.testing.assert_array_equal(logits, model(dsm, threshold))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, model_state, state.model_state))


def test_training_pass_moves_the_running_statistics_and_not_the_module(model):
    state = create_state(model, Config())
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    dsm = jnp.linspace(0.0, 30.0, 128).reshape(2, 8, 8, 1)
    _, moved = state.apply(state.params, state.model_state, dsm, jnp.array([5.0, 10.0]), train=True)
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, moved, state.model_state))
    after = nnx.to_pure_dict(nnx.state(model))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


def test_two_models_of_one_shape_share_compiled_functions(model):
    other = create_model("unet_film", rngs=nnx.Rngs(4), features=4, depth=1)
    one, two = create_state(model, Config()), create_state(other, Config())
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_no_buffer_is_shared_with_the_module(model):
    state = create_state(model, Config())
    for leaf in jax.tree.leaves(state.params):
        leaf.delete()
    assert bool(jnp.isfinite(model(jnp.zeros((1, 8, 8, 1)), jnp.array([5.0]))).all())


# Modules of others


class Untold(nnx.Module):
    """Takes no size of a pixel."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))

    def __call__(self, dsm, threshold=None, rngs=None, train=False):
        return self.weight[...] * (threshold[:, None, None, None] - dsm)


class Told(Untold):
    """Takes it, and multiplies its logits by it."""

    def __call__(self, dsm, threshold=None, rngs=None, train=False, resolution=None):
        side = jnp.ones(len(dsm)) if resolution is None else resolution
        return side[:, None, None, None] * super().__call__(dsm, threshold)


class Wrapper(Told):
    """Hands on whatever it is told."""

    def __call__(self, dsm, threshold=None, **options):
        return super().__call__(dsm, threshold, **options)


@pytest.mark.parametrize("kind", [Untold, Told, Wrapper])
def test_a_module_is_told_the_size_of_a_pixel_where_it_takes_it(kind):
    config = Config(batch_size=2, epochs=1, thresholds=(5.0,), use_progress_bar=False)
    state = create_state(kind(), config)
    resolution = np.float32([0.5, 2.0])
    assert state.told(resolution) == ({} if kind is Untold else {"resolution": resolution})
    assert state.told(None) == {}
    dsm = np.linspace(4.0, 6.0, 128, dtype=np.float32).reshape(2, 8, 8, 1)
    side = 1.0 if kind is Untold else resolution[:, None, None, None]
    np.testing.assert_allclose(
        predict(state, dsm, 5.0, resolution), 1 / (1 + np.exp(-side * (5.0 - dsm))), rtol=1e-5
    )
    batch = {"dsm": dsm, "mask": dsm < 5.0, "threshold": 5.0, "resolution": resolution}
    new, history = train(state, config, {"train": [batch]})
    logits, mask = side * (5.0 - dsm.astype(float)), dsm < 5.0
    scored = evaluate(state, replace(config, loss_type="bce"), [batch])
    np.testing.assert_allclose(scored["loss"], np.mean(np.logaddexp(0, logits) - mask * logits), rtol=1e-5)
    assert float(new.params["weight"]) != 1.0
    assert np.isfinite(history["train_loss"]).all()
