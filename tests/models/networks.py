"""Each network of the registry, small, with its compiled passes; one compile for all tests."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from forestgaps_jax.models import MODELS, create_model

DEPTH = 2
SMALL = {"features": 4, "depth": DEPTH}
RNG = np.random.default_rng(0)
# Steps of 1/64 m, so that sums with whole metres are exact in float32.
DSM = (RNG.integers(300 * 64, 330 * 64, (2, 16, 24, 1)) / 64).astype(np.float32)
THRESHOLD = np.array([5.0, 20.0], np.float32)
# Not 1 m, whose embedding is 0 where no threshold steers, so that FiLM learns nothing of it.
RESOLUTION = np.array([2.0, 2.0], np.float32)
GAP = (DSM < 315).astype(np.float32)
STEERED = {"unet_film", "unet_residual", "unet_attention", "unet_all_features", "deeplabv3_plus_film"}
UNSTEERED = {"unet", "deeplabv3_plus"}
TOLD_PIXELS = STEERED | {"unet_distribution", "unet_ground"}
# Networks that answer several thresholds of a sample in one pass.
SEVERAL = {"unet_distribution", "unet_ground"}
# The tests compile more than they compute. (At level 0, XLA's CPU backend makes gradients NaN.)
QUICK = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False
compiled = partial(jax.jit, compiler_options=QUICK if jax.default_backend() == "cpu" else None)
every = pytest.mark.parametrize("name", sorted(MODELS))
steered = pytest.mark.parametrize("name", sorted(STEERED))


@cache
def abstract(name, **options):
    """The network without its numbers: quick to make, enough for `jax.eval_shape`."""
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **SMALL | options))


def stride_of(name, depth=DEPTH):
    """What height and width of a network's tiles must be multiples of."""
    return 2**depth * (4 if name == "unet_ground" else 1)


def shape_of(network, *arguments):
    """What comes out of an abstract network."""
    graph, state = nnx.split(network)
    return jax.eval_shape(lambda state, *inputs: nnx.merge(graph, state)(*inputs), state, *arguments)


def initial(name, **options):
    """Graph, parameters and the other state of a network; U-Nets as flat as they can be."""
    depth = DEPTH if name.startswith("deeplab") else 1
    network = create_model(name, rngs=nnx.Rngs(0), **SMALL | {"depth": depth} | options)
    graph, params, rest = nnx.split(network, nnx.Param, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def loss_and_logits(graph, params, rest, dsm, threshold, key, rate):
    network = nnx.merge(graph, params, rest)
    rngs = nnx.Rngs(dropout=key, drop_path=jax.random.fold_in(key, 1))
    logits = network(dsm, threshold, rngs, True, drop_path_rate=rate, resolution=jnp.asarray(RESOLUTION))
    loss = optax.sigmoid_binary_cross_entropy(logits, jnp.asarray(GAP)).mean()
    return loss, (logits, nnx.to_pure_dict(nnx.state(network, nnx.Not(nnx.Param))))


class Step(NamedTuple):
    loss: np.ndarray
    logits: np.ndarray
    gradients: dict
    rest: dict


class Small:
    """A network at its start, and its compiled passes."""

    def __init__(self, name, **options):
        self.graph, self.params, self.rest = initial(name, **options)
        self.traced = 0
        self._step, self._logits = compiled(self._trained), compiled(self._evaluated)
        self._heights = compiled(self._without_threshold)

    def _evaluated(self, params, rest, dsm, threshold, resolution):
        return nnx.merge(self.graph, params, rest)(dsm, threshold, resolution=resolution)

    def _without_threshold(self, params, rest, dsm, resolution):
        return nnx.merge(self.graph, params, rest)(dsm, resolution=resolution)

    def _trained(self, params, *arguments):
        self.traced += 1
        found = jax.value_and_grad(loss_and_logits, argnums=1, has_aux=True)(self.graph, params, *arguments)
        (loss, (logits, rest)), gradients = found
        return Step(loss, logits, gradients, rest)

    def step(self, dsm=DSM, params=None, rest=None, key=0, rate=0.0, threshold=THRESHOLD) -> Step:
        """A training pass and its gradients; ``rate`` is traced."""
        params, rest = self.params if params is None else params, self.rest if rest is None else rest
        return self._step(params, rest, dsm, threshold, jax.random.key(key), jnp.float32(rate))

    def logits(self, dsm=DSM, threshold=THRESHOLD, params=None, resolution=RESOLUTION):
        """An evaluation pass."""
        params = self.params if params is None else params
        return np.asarray(self._logits(params, self.rest, dsm, threshold, resolution))

    def median_of(self, params, dsm=DSM, resolution=RESOLUTION):
        """Heights of a network that predicts their distribution."""
        return np.asarray(self._heights(params, self.rest, dsm, resolution))

    @property
    def learnt(self):
        """Parameters with FiLM weights that are no longer zero."""
        rng = np.random.default_rng(1)

        def perturb(path, value):
            film = any("film" in str(key) for key in path)
            return value + rng.normal(0, 0.3, value.shape).astype(np.float32) if film else value

        return jax.tree_util.tree_map_with_path(perturb, self.params)


small: Callable[[str], Small] = cache(Small)


def with_head(params, bias):
    """Parameters whose head gives the same everywhere."""
    head = {"kernel": np.zeros_like(params["head"]["kernel"]), "bias": np.float32(bias)}
    return params | {"head": head}


def without_plane(tile):
    """A tile without its least-squares plane, float64, by NumPy."""
    design = np.stack([axis.ravel() for axis in (*np.indices(tile.shape), np.ones(tile.shape))], axis=1)
    tile = tile.astype(np.float64)
    return tile - (design @ np.linalg.lstsq(design, tile.ravel())[0]).reshape(tile.shape)
