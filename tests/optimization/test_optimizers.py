import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from forestgaps_jax import Config
from forestgaps_jax.optimization import GradientClipping, create_optimizer, create_scheduler, kernel_mask

STEPS = 6
PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"conv": {"kernel": (2, 3, 2, 4), "bias": (4,)}, "dense": {"kernel": (3, 2)}, "scale": (3,)}
    return jax.tree.map(
        lambda shape: rng.normal(0, scale, shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


GRADIENTS = [tree(seed) for seed in range(1, STEPS + 1)]


def rate(step):
    return 0.1 / (1 + step)


def trained(transformation, gradients=GRADIENTS):
    """Parameters after the steps of an optax transformation."""
    params = tree(0)
    state, update = transformation.init(params), jax.jit(transformation.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def by_hand(step_of):
    """Parameters after the same steps in float64; ``step_of(memory, gradient, step)`` is the direction."""

    def leaf(start, *gradients, decay):
        param, memory = np.asarray(start, np.float64), {"m": 0.0, "v": 0.0}
        for step, gradient in enumerate(gradients):
            direction = step_of(memory, np.asarray(gradient, np.float64), step)
            param = param - rate(step) * (direction + decay * (param if param.ndim > 1 else 0.0))
        return param

    return lambda decay: jax.tree.map(lambda *leaves: leaf(*leaves, decay=decay), tree(0), *GRADIENTS)


def adam(memory, gradient, step, b1=0.8, b2=0.95):
    memory["m"] = b1 * memory["m"] + (1 - b1) * gradient
    memory["v"] = b2 * memory["v"] + (1 - b2) * gradient**2
    first, second = memory["m"] / (1 - b1 ** (step + 1)), memory["v"] / (1 - b2 ** (step + 1))
    return first / (np.sqrt(second) + 1e-8)


def momentum(memory, gradient, step):
    memory["m"] = 0.7 * memory["m"] + gradient
    return memory["m"]


def nesterov(memory, gradient, step):
    return gradient + 0.7 * momentum(memory, gradient, step)


def assert_close(got, expected, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, expected)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("settings", "direction"),
    [
        ({"optimizer": "adam", "adam_betas": (0.8, 0.95)}, adam),
        ({"optimizer": "adamw", "adam_betas": (0.8, 0.95)}, adam),
        ({"optimizer": "sgd", "momentum": 0.7, "nesterov": True}, nesterov),
        ({"optimizer": "sgd", "momentum": 0.7, "nesterov": False}, momentum),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": False}, lambda memory, gradient, step: gradient),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_steps_are_those_of_the_textbook_with_decoupled_decay_fault_12(settings, direction, decay):
    config = Config(**settings, weight_decay=decay)
    assert_close(trained(create_optimizer(config, rate)), by_hand(direction)(decay))


def test_adamw_is_that_of_optax_with_decay_on_kernels():
    config = Config(optimizer="adamw", weight_decay=0.3)
    expected = optax.adamw(rate, weight_decay=0.3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    assert_close(trained(create_optimizer(config, rate)), trained(expected), rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_decay_alone_shrinks_kernels_and_leaves_biases_and_scales_fault_12(optimizer):
    still = [jax.tree.map(np.zeros_like, tree(0))] * 3
    config = Config(optimizer=optimizer, weight_decay=0.5)
    params, start = trained(create_optimizer(config, lambda step: 0.1), still), tree(0)
    for path in (("conv", "kernel"), ("dense", "kernel")):
        np.testing.assert_allclose(params[path[0]][path[1]], start[path[0]][path[1]] * 0.95**3, rtol=1e-5)
    np.testing.assert_array_equal(params["conv"]["bias"], start["conv"]["bias"])
    np.testing.assert_array_equal(params["scale"], start["scale"])


def test_kernels_are_the_leaves_of_two_dimensions_or_more():
    params = {
        "kernel": np.zeros((3, 3, 1, 2)),
        "dense": np.zeros((2, 2)),
        "bias": np.zeros(2),
        "s": np.zeros(()),
    }
    assert kernel_mask(params) == {"kernel": True, "dense": True, "bias": False, "s": False}


class Attention(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.attend = nnx.MultiHeadAttention(2, 4, rngs=rngs)
        self.norm, self.conv = nnx.LayerNorm(4, rngs=rngs), nnx.Conv(1, 2, (3, 3), rngs=rngs)


@pytest.mark.parametrize("view", [nnx.to_pure_dict, lambda state: state], ids=["dict", "state"])
def test_biases_are_no_kernels_whatever_their_shape_fault_12(view):
    """The bias of an attention head is a matrix."""
    params = view(nnx.state(Attention(), nnx.Param))
    assert params["attend"]["query"]["bias"].ndim == 2
    mask = kernel_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    named = [(str(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(mask)]
    assert [("kernel" in path) == leaf for path, leaf in named] == [True] * len(named)
    assert sum(leaf for _, leaf in named) == 5


def means(k):
    """Means of k gradients after another."""
    return [
        jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *GRADIENTS[i : i + k])
        for i in range(0, STEPS, k)
    ]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("settings", [{}, {"use_gradient_clipping": True, "clip_value": 0.1}])
def test_accumulated_steps_are_those_of_the_mean_gradients(settings, k):
    """Clipping and decay act once on the mean; the schedule counts what moved the weights."""
    config = Config(**settings, weight_decay=0.3, gradient_accumulation_steps=k)
    single = Config(**settings, weight_decay=0.3)
    assert_close(trained(create_optimizer(config, rate)), trained(create_optimizer(single, rate), means(k)))


def test_weights_stand_still_between_accumulated_steps():
    optimizer = create_optimizer(Config(gradient_accumulation_steps=3), rate)
    params = tree(0)
    state, update, moved = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in GRADIENTS[:5]:
        updates, state = update(gradient, state, params)
        moved.append(float(optax.tree.norm(updates)) > 0)
    assert moved == [False, False, True, False, False]


@pytest.mark.parametrize("k", [1, 2])
def test_the_state_has_the_same_structure_for_every_schedule(k):
    def state(**settings):
        config = Config(**settings, gradient_accumulation_steps=k)
        return create_optimizer(config, create_scheduler(config, 5)).init(tree(0))

    base = jax.eval_shape(state)
    for name in ("constant", "plateau", "warmup_plateau", "onecycle", "step", "cosine_restart"):
        assert jax.eval_shape(lambda name=name: state(scheduler_type=name)) == base


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("k", [1, 2])
def test_monitored_gradients_are_those_before_clipping(clip, k):
    clipping = GradientClipping(8.0 if clip else None, monitor=True).transform()
    optimizer = optax.MultiSteps(optax.chain(clipping, optax.sgd(rate)), k).gradient_transformation()
    params = tree(0)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in GRADIENTS:
        _, state = update(gradient, state, params)
    norms = [np.sqrt(sum((np.float64(x) ** 2).sum() for x in jax.tree.leaves(mean))) for mean in means(k)]
    statistics = GradientClipping.statistics(state)
    assert statistics["mean"] == pytest.approx(np.mean(norms), rel=1e-5)
    assert statistics["max"] == pytest.approx(max(norms), rel=1e-5)
    assert statistics["clipped"] == (sum(norm > 8 for norm in norms) if clip else 0)
    assert statistics["count"] == STEPS // k


@pytest.mark.parametrize(("scale", "clipped"), [(10.0, True), (1e-3, False)])
def test_clipping_by_norm_bounds_the_norm_of_all_leaves_together(scale, clipped):
    gradient = tree(1, scale)
    config = Config(**PLAIN_SGD, use_gradient_clipping=True, clip_value=0.5, clip_norm=True)
    updates = _one_update(config, gradient)
    norm = np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
    assert (norm > 0.5) == clipped
    factor = 0.5 / norm if clipped else 1.0
    assert_close(updates, jax.tree.map(lambda leaf: -leaf * factor, gradient), rtol=1e-5)


def test_clipping_by_value_bounds_each_entry():
    gradient = tree(1)
    config = Config(**PLAIN_SGD, use_gradient_clipping=True, clip_value=0.5, clip_norm=False)
    assert_close(_one_update(config, gradient), jax.tree.map(lambda g: -np.clip(g, -0.5, 0.5), gradient))


def test_gradients_are_not_clipped_unless_asked_for():
    gradient = tree(1, 1e4)
    assert_close(_one_update(Config(**PLAIN_SGD), gradient), jax.tree.map(np.negative, gradient))


def test_decay_is_added_after_clipping():
    config = Config(**PLAIN_SGD | {"weight_decay": 2.0}, use_gradient_clipping=True, clip_value=1e-6)
    params = trained(create_optimizer(config, lambda step: 0.1), GRADIENTS[:1])
    np.testing.assert_allclose(params["dense"]["kernel"], tree(0)["dense"]["kernel"] * 0.8, rtol=1e-3)


def test_learning_rate_follows_the_schedule_by_optimizer_step():
    config = Config(**PLAIN_SGD, epochs=2, learning_rate=0.2, min_lr=0.0)
    transformation = create_optimizer(config, create_scheduler(config, 3))
    ones, state = {"w": jnp.ones(1)}, transformation.init({"w": jnp.ones(1)})
    moved = []
    for _ in range(8):
        updates, state = transformation.update(ones, state, ones)
        moved.append(-float(updates["w"][0]))
    steps = np.minimum(np.arange(8), 6)
    np.testing.assert_allclose(moved, 0.1 * (1 + np.cos(np.pi * steps / 6)), atol=1e-7)


def _one_update(config, gradient):
    transformation = create_optimizer(config, lambda step: 1.0)
    updates, _ = transformation.update(gradient, transformation.init(tree(0)), tree(0))
    return updates
