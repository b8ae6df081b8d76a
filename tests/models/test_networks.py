"""What every network of the registry keeps to."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from forestgaps_jax.models import MODELS, create_model
from tests.models.networks import (
    DSM,
    SEVERAL,
    SMALL,
    STEERED,
    THRESHOLD,
    TOLD_PIXELS,
    UNSTEERED,
    Small,
    abstract,
    compiled,
    every,
    shape_of,
    small,
    steered,
    stride_of,
)


@pytest.fixture
def unchecked():
    """What a user meets, who runs without the shape checks of the test run."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@every
@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 3)])
def test_any_multiple_of_the_stride_gives_float32_logits_of_its_shape(name, height, width):
    stride = stride_of(name)
    tile, threshold = jnp.zeros((3, height * stride, width * stride, 1)), jnp.ones(3)
    out = shape_of(abstract(name), tile, threshold)
    assert (out.shape, out.dtype) == (tile.shape, jnp.float32)


def sizes_of_convolutions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.outvars[0].aval.shape[1:3]
        for inner in jaxprs_in_params(equation.params):
            yield from sizes_of_convolutions(inner)


@pytest.mark.parametrize("name", ["unet", "unet_attention", "unet_regression", "deeplabv3_plus"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_fault_17_the_network_halves_the_tile_depth_times(name, depth):
    graph, state = nnx.split(abstract(name, features=2, depth=depth))
    arguments = state, jnp.zeros((1, 32, 48, 1)), jnp.ones(1)
    jaxpr = jax.make_jaxpr(lambda state, *inputs: nnx.merge(graph, state)(*inputs))(*arguments)
    found = set(sizes_of_convolutions(jaxpr.jaxpr))
    expected = {(32 // 2**level, 48 // 2**level) for level in range(depth + 1)}
    if name == "deeplabv3_plus":  # it begins with a halving, and pools the whole tile
        expected = {size for size in expected if size != (32, 48)} | {(1, 1)}
    assert found == expected


@every
def test_fault_17_a_network_without_a_threshold_takes_one_and_others_need_it(name):
    network, tile = abstract(name), jnp.zeros((2, 16, 16, 1))
    assert shape_of(network, tile, jnp.ones(2)).shape == tile.shape
    if name in STEERED:
        with pytest.raises(ValueError, match=r"threshold has shape None: must be \(2,\)"):
            shape_of(network, tile)
    else:
        assert shape_of(network, tile).shape == tile.shape


@every
@pytest.mark.parametrize(
    ("dsm", "message"),
    [
        (np.zeros((2, 16, 10, 1), np.float32), "16 x 10 px: both must be multiples of STRIDE,.*pad the tile"),
        (np.zeros((2, 1, 8, 8), np.float32), r"\(2, 1, 8, 8\).*transpose it by \(0, 2, 3, 1\)"),
        (np.zeros((2, 8, 8), np.float32), r"\(2, 8, 8\): must be \[batch, height, width, 1\]$"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tiles_that_do_not_fit_are_errors_that_say_so(name, dsm, message):
    with pytest.raises(ValueError, match=message.replace("STRIDE", str(stride_of(name)))):
        abstract(name)(jnp.asarray(dsm), jnp.asarray(THRESHOLD))


@every
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 4), (3, 2), (2, 0), (2, 1, 1), ()])
@pytest.mark.usefixtures("unchecked")
def test_thresholds_that_are_not_one_a_sample_are_errors(name, shape):
    """Several a sample are too, but for the networks that answer them in one pass."""
    tile, threshold = jnp.zeros((2, 16, 16, 1)), jnp.ones(shape)
    if name in SEVERAL and shape in ((2, 1), (2, 4)):
        assert shape_of(abstract(name), tile, threshold).shape == (2, 16, 16, shape[1])
        return
    with pytest.raises(ValueError, match=r"threshold has shape .*: must be \(2,\)") as error:
        abstract(name)(tile, threshold)
    assert str(shape) in str(error.value)


@every
def test_a_few_steps_lower_the_loss(name):
    network = small(name)
    optimizer = optax.adam(1e-2)
    params, rest, state = network.params, network.rest, optimizer.init(network.params)

    @compiled
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    losses = []
    for _ in range(12):
        step = network.step(params=params, rest=rest)
        (params, state), rest = update(step.gradients, state, params), step.rest
        losses.append(float(step.loss))
    assert losses[-1] < 0.9 * losses[0]


@steered
def test_fault_14_film_starts_as_the_identity(name):
    network = small(name)
    logits = network.logits()
    assert logits.std() > 1e-3
    np.testing.assert_array_equal(logits, network.logits(threshold=THRESHOLD + 7))


@every
def test_the_threshold_changes_the_logits_only_where_it_should(name):
    network = small(name)
    before, after = (network.logits(threshold=THRESHOLD + more, params=network.learnt) for more in (0, 7))
    if name in STEERED:
        assert (np.abs(after - before).max(axis=(1, 2, 3)) > 1e-3).all()
    elif name in UNSTEERED:
        np.testing.assert_array_equal(before, after)
    elif name == "unet_regression":
        np.testing.assert_allclose(after, before + 7, atol=1e-4)
    else:
        assert (after > before).all()


@steered
def test_a_sample_is_steered_by_its_own_threshold(name):
    network = small(name)
    before, after = (
        network.logits(threshold=THRESHOLD + np.float32([0, more]), params=network.learnt) for more in (0, 7)
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any()


@every
def test_fault_14_gradients_reach_every_weight_once_film_has_moved(name):
    """FiLM starts with a zero kernel: nothing comes through it to the embedding before the first step."""
    network = small(name)
    first = network.step()
    params = jax.tree.map(lambda p, g: p - 0.1 * g, network.params, first.gradients)
    second = network.step(params=params, rest=first.rest)
    for step, blocked in ((first, "embed"), (second, "nothing")):
        gradients = jax.tree_util.tree_leaves_with_path(step.gradients)
        assert all(np.isfinite(value).all() for _, value in gradients)
        without = {jax.tree_util.keystr(path) for path, value in gradients if not np.asarray(value).any()}
        expected = {jax.tree_util.keystr(path) for path, _ in gradients if blocked in str(path[0])}
        assert without == expected


@every
def test_the_size_of_a_pixel_changes_the_logits_of_its_own_sample_where_it_should(name):
    network = small(name)
    before, after = (
        network.logits(resolution=np.float32([0.5, side]), params=network.learnt) for side in (2, 1)
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert (np.abs(before[1] - after[1]).max() > 1e-3) == (name in TOLD_PIXELS)


@pytest.mark.parametrize("name", ["unet_film", "unet_distribution", "deeplabv3_plus_film"])
def test_pixels_that_nobody_tells_are_of_1_m(name):
    network = small(name)
    told = network.logits(params=network.learnt, resolution=np.ones(2, np.float32))
    untold = network.logits(params=network.learnt, resolution=None)
    np.testing.assert_allclose(untold, told, atol=1e-5)


# In quarters of a metre, so that sums are exact in float32; a hillside of 46 degrees at 1 m.
PLANE = (np.arange(24)[None, :, None] - 0.25 * np.arange(16)[:, None, None]).astype(np.float32)


@every
@pytest.mark.parametrize("added", [PLANE, 2000 - 0.5 * PLANE], ids=["plane", "other plane"])
def test_no_tilt_of_the_ground_reaches_the_network(name, added):
    network = small(name)
    flat, tilted = (network.logits(dsm, params=network.learnt) for dsm in (DSM, DSM + added))
    # FiLM at random makes logits of up to 40,000; some processors round so that 1.5e-5 of that differs.
    np.testing.assert_allclose(tilted, flat, rtol=0, atol=2e-5 * max(100.0, np.abs(flat).max()))


@every
def test_no_elevation_of_the_site_reaches_the_network(name):
    network = small(name)
    low, high = (network.logits(dsm, params=network.learnt) for dsm in (DSM, DSM + np.float32(4000)))
    np.testing.assert_array_equal(low, high)


@pytest.mark.parametrize("name", ["unet", "unet_distribution", "deeplabv3_plus"])
def test_a_tilt_reaches_a_network_without_detrending(name):
    network = Small(name, detrend=False)
    flat, tilted = (network.logits(dsm) for dsm in (DSM, DSM + PLANE))
    assert np.abs(flat - tilted).max() > 1e-2


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"unet_ground"}))
@pytest.mark.parametrize("windows", [(), (3,), (3, 9)])
def test_each_opening_is_one_more_channel_for_the_first_convolution(name, windows):
    if name == "unet_distribution" and not windows:
        pytest.skip("it mixes openings, and refuses to have none")
    network = abstract(name, opening_windows=windows)
    first = network.stem if name.startswith("deeplab") else network.encoder[0].conv1
    assert first.kernel.shape[2] == 1 + len(windows)
    assert shape_of(network, jnp.zeros((2, 8, 8, 1)), jnp.ones(2)).shape == (2, 8, 8, 1)


@every
def test_what_stands_in_unknown_pixels_does_not_matter(name):
    network = small(name)
    holes = np.zeros(DSM.shape, bool)
    holes[0, 2:7, 1:9], holes[:, -3:] = True, True
    found = []
    for hole in (np.nan, np.inf, -np.inf):
        dsm = np.where(holes, np.float32(hole), DSM)
        step = network.step(dsm)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((step.gradients, step.rest)))
        found.append((np.asarray(step.logits), network.logits(dsm)))
        assert all(np.isfinite(logits).all() for logits in found[-1])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@every
def test_a_tile_without_data_changes_nothing_for_the_others(name):
    """Not even through the statistics of BatchNorm, and its own logits and gradients are finite."""
    network = small(name)
    alone, beside = DSM[[0, 0]], DSM.copy()
    beside[1] = np.nan
    threshold = THRESHOLD[[0, 0]]
    steps = [network.step(dsm, params=network.learnt, threshold=threshold) for dsm in (alone, beside)]
    np.testing.assert_allclose(steps[0].logits[0], steps[1].logits[0], atol=2e-4)
    for a, b in zip(*(jax.tree.leaves(step.rest) for step in steps), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert np.isfinite(steps[1].logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(steps[1].gradients))


@every
def test_fault_11_any_rate_of_stochastic_depth_is_finite_and_none_compiles_anew(name):
    network = small(name)
    same, other = ([network.step(key=key, rate=rate) for rate in (0.0, 0.5, 1.0)] for key in (0, 1))
    assert network.traced == 1
    for step in (*same, *other):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    differs = [bool((a.logits != b.logits).any()) for a, b in zip(same, other, strict=True)]
    # At rate 1 the deepest block is always dropped, the others by their shares.
    assert differs == [False, True, True]
    assert (same[0].logits != same[2].logits).any()


@pytest.mark.parametrize("name", ["unet", "deeplabv3_plus"])
def test_a_traced_rate_needs_a_drop_path_stream_and_the_rate_of_construction_too(name):
    tile, threshold = jnp.zeros((2, 8, 8, 1)), jnp.ones(2)

    def train(rate, **options):
        network = create_model(name, rngs=nnx.Rngs(0), **SMALL, **options)
        network(tile, threshold, nnx.Rngs(dropout=0), True, rate)

    jax.eval_shape(lambda: train(None))
    jax.eval_shape(lambda: train(0.0, drop_path_rate=0.2))
    for call in (
        lambda: jax.eval_shape(train, jnp.float32(0)),
        lambda: jax.eval_shape(lambda: train(None, drop_path_rate=0.2)),
        lambda: jax.eval_shape(lambda: train(0.2)),
    ):
        with pytest.raises(ValueError, match=r"needs rngs=nnx.Rngs\(drop_path=...\)"):
            call()


@every
def test_training_moves_running_statistics(name):
    network = small(name)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), network.rest, network.step().rest)
    assert all(jax.tree.leaves(moved))


@every
def test_no_random_state_is_kept(name):
    network = abstract(name, dropout=0.3, drop_path_rate=0.5, spectral_norm=True)
    leaves = jax.tree.leaves(nnx.state(network), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    assert {type(leaf) for leaf in leaves} == {nnx.Param, nnx.BatchStat}


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("unet", {"drop_path_rate": 1.5}, "drop_path_rate = 1.5: must be from 0 to 1"),
        ("unet_film", {"block": "dense"}, "block = 'dense': must be one of plain, residual"),
        ("deeplabv3_plus", {"depth": 0}, "depth = 0: must be 1 or more"),
        ("unet", {"precision": "float16"}, "precision = 'float16': must be"),
        ("deeplabv3_plus_film", {"norm": "adaptive"}, "batch_size = None: must be 1 or more"),
    ],
)
def test_wrong_options_are_errors(name, option, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, rngs=nnx.Rngs(0), **option)


@pytest.mark.parametrize("name", ["unet_residual", "unet_attention", "unet_all_features"])
def test_steering_is_optional(name):
    network = abstract(name, film=False)
    assert network.embed is None
    assert shape_of(network, jnp.zeros((2, 8, 8, 1))).shape == (2, 8, 8, 1)
