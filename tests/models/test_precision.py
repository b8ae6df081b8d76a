"""Half precision, rematerialisation, spectral normalisation and dropout in whole networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from forestgaps_jax.models import create_model
from forestgaps_jax.models.network import OPENING_WINDOWS
from tests.models.networks import DSM, SMALL, THRESHOLD, Small, abstract, every, loss_and_logits, small

ALL_ON = {"dropout": 0.3, "spectral_norm": True, "drop_path_rate": 0.2}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def traced(name, gradient=False, **options):
    """The equations of a training pass, or of its gradient, and what comes out."""

    def apply():
        graph, params, rest = nnx.split(
            create_model(name, rngs=nnx.Rngs(0), **SMALL | options), nnx.Param, ...
        )
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
        inputs = jnp.asarray(DSM), jnp.asarray(THRESHOLD), jax.random.key(0), jnp.float32(0.1)
        if gradient:
            return jax.grad(loss_and_logits, argnums=1, has_aux=True)(graph, params, rest, *inputs)[0]
        return loss_and_logits(graph, params, rest, *inputs)[1], params

    jaxpr, out = jax.make_jaxpr(apply, return_shape=True)()
    return list(equations(jaxpr.jaxpr)), out


@every
def test_bfloat16_is_for_convolutions_within_and_float32_for_all_that_is_kept(name):
    found, ((logits, rest), params) = traced(name, precision="bfloat16", depth=1)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((params, rest))} == {jnp.dtype("float32")}
    convolutions = [e for e in found if e.primitive.name == "conv_general_dilated"]
    # Heights go in, and logits come out, as float32.
    full = [e for e in convolutions if e.invars[0].aval.dtype != jnp.bfloat16]
    heights = getattr(abstract(name), "inputs", 1 + len(OPENING_WINDOWS))
    answers = getattr(abstract(name), "outputs", 1)
    assert all(e.invars[0].aval.shape[-1] == heights or e.outvars[0].aval.shape[-1] == answers for e in full)
    assert len(full) <= 3 < len(convolutions) - len(full)
    activations = [e.outvars[0].aval.dtype for e in found if e.primitive.name == "concatenate"]
    assert jnp.bfloat16 in activations


def test_bfloat16_gives_about_the_same_logits_and_float32_gradients():
    half, full = Small("unet_film", precision="bfloat16").step(), small("unet_film").step()
    np.testing.assert_allclose(half.logits, full.logits, atol=0.1)
    assert np.abs(half.logits - full.logits).mean() < 0.02
    for a, b in zip(jax.tree.leaves(half.gradients), jax.tree.leaves(full.gradients), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.1 * float(np.abs(b).max()) + 2e-2)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", ["unet", "unet_all_features", "deeplabv3_plus_film"])
def test_the_gradient_rematerialises_when_asked_to(name, remat):
    found, _ = traced(name, gradient=True, remat=remat, depth=1)
    policies = [e.params["policy"] for e in found if e.primitive.name in ("checkpoint", "remat2", "remat")]
    # Without, blocks keep what is dear to compute.
    assert policies
    assert all((policy is None) == remat for policy in policies)


def test_rematerialisation_and_half_precision_keep_less_for_the_backward_pass(monkeypatch):
    def kept(**options):
        graph, params, rest = nnx.split(
            create_model("unet_film", rngs=nnx.Rngs(0), features=8, depth=2, **options), nnx.Param, ...
        )
        params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

        def backward(params):
            return jax.vjp(lambda p: nnx.merge(graph, p, rest)(*tiles), params)[1]

        tiles = jnp.asarray(DSM), jnp.asarray(THRESHOLD)
        leaves = jax.tree.leaves(jax.eval_shape(backward, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    on_cpu = kept()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kept(remat=True) < 0.8 * on_cpu < 0.5 * kept()
    assert kept(precision="bfloat16") < 0.9 * kept()


def test_rematerialisation_changes_neither_gradients_nor_statistics_nor_draws():
    networks = [Small("unet", remat=remat, **ALL_ON) for remat in (False, True)]
    for key, rate in ((0, 0.0), (1, 0.5)):
        plain, again = (network.step(key=key, rate=rate) for network in networks)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-4 * max(1.0, float(np.abs(a).max())))
    assert networks[1].traced == 1
    # Training moves every statistic, those of the power iteration too; evaluation has none to move.
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), networks[1].rest, again.rest)
    assert any("direction" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(moved))
    one_channel = [path for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert all("direction" in str(path) for path in one_channel)


def test_evaluation_moves_no_statistic():
    graph, state = nnx.split(create_model("unet", rngs=nnx.Rngs(0), **SMALL, spectral_norm=True))

    @jax.jit
    def evaluate(state):
        network = nnx.merge(graph, state)
        network(jnp.asarray(DSM))
        return nnx.state(network)

    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(evaluate(state)), strict=True):
        np.testing.assert_array_equal(a, b)
