import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax import Config, create_model, create_state


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
