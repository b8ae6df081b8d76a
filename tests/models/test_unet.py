"""The networks by their behaviour: every model of the registry, compiled, small."""

from functools import cache

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from forestgaps_jax.config import Config
from forestgaps_jax.models import MODELS, create_model, create_model_from_config

DEPTH = 2
SMALL = {"features": 4, "depth": DEPTH}
RNG = np.random.default_rng(0)
DSM = RNG.uniform(300, 330, (2, 8, 12, 1)).astype(np.float32)
THRESHOLD = np.array([5.0, 20.0], np.float32)
both = pytest.mark.parametrize("name", sorted(MODELS))


@cache
def model(name, **options):
    return create_model(name, rngs=nnx.Rngs(0), **SMALL, **options)


@cache
def forward(name, train=False, **options):
    """``(state, dsm, threshold, key) -> (logits, state)``, compiled."""
    graph = nnx.graphdef(model(name, **options))

    def apply(state, dsm, threshold, key):
        network = nnx.merge(graph, state)
        logits = network(dsm, threshold, nnx.Rngs(dropout=key, drop_path=key), train)
        return logits, nnx.state(network)

    return jax.jit(apply)


def logits_of(name, dsm=DSM, threshold=THRESHOLD, state=None, key=0, train=False, **options):
    state = nnx.state(model(name, **options)) if state is None else state
    return np.asarray(forward(name, train, **options)(state, dsm, threshold, jax.random.key(key))[0])


def steered(name):
    """The state with FiLM weights that are no longer zero."""
    rng = np.random.default_rng(1)

    def perturb(path, value):
        film = any("film" in str(key) for key in path)
        return value + rng.normal(0, 0.3, value.shape).astype(np.float32) if film else value

    return jax.tree_util.tree_map_with_path(perturb, nnx.state(model(name)))


@pytest.fixture
def unchecked():
    """What a user meets, who runs without the shape checks of the test run."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@both
def test_logits_have_the_shape_of_the_tile(name):
    assert logits_of(name).shape == DSM.shape
    assert logits_of(name).dtype == np.float32


@both
@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 20), (16, 12)])
def test_any_multiple_of_the_stride_fits(name, height, width):
    network = model(name)
    shape = jax.eval_shape(network, jnp.zeros((1, height, width, 1)), jnp.ones(1)).shape
    assert shape == (1, height, width, 1)


def sizes_of_convolutions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.outvars[0].aval.shape[1:3]
        for inner in jaxprs_in_params(equation.params):
            yield from sizes_of_convolutions(inner)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_network_halves_the_tile_depth_times(depth):
    network = nnx.eval_shape(lambda: create_model("unet", rngs=nnx.Rngs(0), features=2, depth=depth))
    graph, state = nnx.split(network)
    jaxpr = jax.make_jaxpr(lambda state, dsm: nnx.merge(graph, state)(dsm))(state, jnp.zeros((1, 16, 24, 1)))
    expected = {(16 // 2**level, 24 // 2**level) for level in range(depth + 1)}
    assert set(sizes_of_convolutions(jaxpr.jaxpr)) == expected


@both
@pytest.mark.parametrize(
    ("dsm", "message"),
    [
        (np.zeros((2, 8, 10, 1), np.float32), r"8 x 10 px: both must be multiples of 4.*pad the tile"),
        (np.zeros((2, 1, 8, 8), np.float32), r"\(2, 1, 8, 8\).*transpose it by \(0, 2, 3, 1\)"),
        (np.zeros((2, 8, 8), np.float32), r"\(2, 8, 8\): must be \[batch, height, width, 1\]$"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tiles_that_do_not_fit_are_errors_that_say_so(name, dsm, message):
    with pytest.raises(ValueError, match=message):
        model(name)(jnp.asarray(dsm), jnp.asarray(THRESHOLD))


@pytest.mark.parametrize("threshold", [None, np.ones(3, np.float32), np.ones((2, 1), np.float32)])
@pytest.mark.usefixtures("unchecked")
def test_a_steered_network_needs_a_threshold_for_each_sample(threshold):
    given = None if threshold is None else threshold.shape
    with pytest.raises(ValueError, match=r"threshold has shape .*: must be \(2,\)") as error:
        model("unet_film")(jnp.asarray(DSM), None if threshold is None else jnp.asarray(threshold))
    assert str(given) in str(error.value)


@pytest.mark.parametrize(("name", "norm"), [("unet", "batch"), ("unet_film", "group")])
def test_unknown_pixels_and_tiles_leave_logits_finite(name, norm):
    dsm = DSM.copy()
    dsm[0, 2:5, 1:9] = np.nan
    dsm[1] = np.nan
    for train in (False, True):
        assert np.isfinite(logits_of(name, dsm, train=train, norm=norm)).all()


@both
def test_elevation_does_not_change_the_logits(name):
    dsm = np.round(DSM * 64) / 64
    np.testing.assert_array_equal(logits_of(name, dsm), logits_of(name, dsm + np.float32(3000)))


def test_the_plain_network_ignores_the_threshold_and_needs_none():
    other = logits_of("unet", threshold=THRESHOLD + 7)
    np.testing.assert_array_equal(logits_of("unet"), other)
    np.testing.assert_array_equal(logits_of("unet", threshold=None), other)


def test_the_steered_network_sees_the_threshold_only_once_film_has_learnt():
    fresh = [logits_of("unet_film", threshold=THRESHOLD + more) for more in (0, 7)]
    np.testing.assert_array_equal(*fresh)
    learnt = [
        logits_of("unet_film", threshold=THRESHOLD + more, state=steered("unet_film")) for more in (0, 7)
    ]
    assert np.abs(learnt[0] - learnt[1]).max() > 1e-3


def test_a_sample_is_steered_by_its_own_threshold():
    changed = THRESHOLD + np.array([0, 7], np.float32)
    before, after = (
        logits_of("unet_film", threshold=threshold, state=steered("unet_film"))
        for threshold in (THRESHOLD, changed)
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any()


@both
def test_no_random_state_is_kept(name):
    network = create_model(name, rngs=nnx.Rngs(0), **SMALL, dropout=0.3, drop_path_rate=0.5)
    leaves = jax.tree.leaves(nnx.state(network), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    assert {type(leaf) for leaf in leaves} == {nnx.Param, nnx.BatchStat}


def test_training_drops_at_random_by_the_key_and_evaluation_does_not():
    options = {"dropout": 0.3, "drop_path_rate": 0.5}
    first, again, other = (logits_of("unet", key=key, train=True, **options) for key in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    np.testing.assert_array_equal(*(logits_of("unet", key=key, train=False, **options) for key in (0, 1)))


def test_training_moves_running_statistics_and_evaluation_does_not():
    state = nnx.state(model("unet"))
    arguments = (state, DSM, THRESHOLD, jax.random.key(0))
    moved = {}
    for train in (False, True):
        states = state, forward("unet", train=train)(*arguments)[1]
        before, after = (jax.tree.leaves(nnx.filter_state(s, nnx.BatchStat)) for s in states)
        moved[train] = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
    assert not any(moved[False])
    assert all(moved[True])


@both
def test_gradients_reach_every_weight_that_zero_film_lets_them(name):
    """FiLM starts with a zero kernel, so nothing comes through it to the threshold's embedding, yet."""
    graph, params, rest = nnx.split(model(name), nnx.Param, ...)

    @jax.jit
    def grad(params):
        def loss(params):
            return jnp.sum(nnx.merge(graph, params, rest)(jnp.asarray(DSM), jnp.asarray(THRESHOLD)) ** 2)

        return jax.grad(loss)(params)

    for weights, blocked in ((params, "embed"), (nnx.filter_state(steered(name), nnx.Param), "nothing")):
        gradients = jax.tree_util.tree_leaves_with_path(grad(weights))
        without = {jax.tree_util.keystr(path) for path, value in gradients if not np.asarray(value).any()}
        assert all(np.isfinite(value).all() for _, value in gradients)
        expected = {jax.tree_util.keystr(path) for path, _ in gradients if blocked in str(path[0])}
        assert without == expected


@both
def test_the_same_seed_gives_the_same_weights_and_another_others(name):
    first, again, other = (
        jax.tree.leaves(nnx.state(create_model(name, rngs=nnx.Rngs(seed), **SMALL))) for seed in (0, 0, 1)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet_flim", "no model 'unet_flim'; did you mean 'unet_film'. there are: unet, unet_film"),
        ("transformer", "no model 'transformer'; there are: unet, unet_film"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_the_names(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, rngs=nnx.Rngs(0))


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="feature"):
        create_model("unet", rngs=nnx.Rngs(0), feature=4)


def shapes(build):
    return jax.tree.map(lambda leaf: leaf.shape, jax.tree.leaves(nnx.state(nnx.eval_shape(build))))


@pytest.mark.parametrize(
    "chosen",
    [
        {"model_name": "unet", "features": 6, "depth": 1, "norm": "group"},
        {"model_name": "unet_film", "features": 3, "depth": 3, "norm": "batch"},
    ],
)
def test_the_model_of_a_config_has_its_settings(chosen):
    config = Config(**chosen, dropout=0.25, drop_path_rate=0.5, height_scale=7.0)
    network = nnx.eval_shape(lambda: create_model_from_config(config))
    options = {key: value for key, value in chosen.items() if key != "model_name"}
    expected = shapes(lambda: create_model(chosen["model_name"], rngs=nnx.Rngs(0), **options))
    assert shapes(lambda: create_model_from_config(config)) == expected
    assert (network.embed is not None) == (chosen["model_name"] == "unet_film")
    assert network.encoder[0].conv1.out_features == chosen["features"]
    assert len(network.encoder) == chosen["depth"]
    assert network.bottom.norm1.kind == chosen["norm"]
    assert network.dropout.rate == 0.25
    assert network.height_scale == 7.0
    levels = chosen["depth"] + 1
    rates = [block.drop_path_rate for block in (*network.encoder, network.bottom)]
    assert rates == pytest.approx([0.5 * (level + 1) / levels for level in range(levels)])


def test_the_seed_of_a_config_gives_the_weights():
    network = create_model_from_config(Config(model_name="unet", seed=3, **SMALL))
    expected = create_model("unet", rngs=nnx.Rngs(3), **SMALL)
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(network)), jax.tree.leaves(nnx.state(expected)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
