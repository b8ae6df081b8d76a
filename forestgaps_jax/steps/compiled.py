"""The three compiled functions: train on a batch, evaluate a batch, predict."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from forestgaps_jax.compilation import jit
from forestgaps_jax.loss import Loss, split_weights
from forestgaps_jax.recipe import Numbers, Plan, Recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps.scoring import EvalStep, numbered_eval_step, scoring_numbers
from forestgaps_jax.steps.training import TrainStep, numbered_train_step
from forestgaps_jax.types import Listed


def as_arrays(numbers: Numbers) -> Numbers:
    """Numbers, and tuples of them, on the device."""
    return jax.tree.map(
        lambda n: jnp.asarray(n, jnp.float32), numbers, is_leaf=lambda n: isinstance(n, tuple)
    )


class Bound:
    """A compiled function with its first argument given."""

    def __init__(self, function: Callable[..., Any], numbers: Numbers):
        self._function: Any = function
        self._numbers = as_arrays(numbers)

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        return self._function(self._numbers, *arguments)

    def lower(self, *arguments: Any) -> Any:
        """The function lowered for these arguments, as `jax.jit` has it."""
        return self._function.lower(self._numbers, *arguments)

    def _cache_size(self) -> int:
        return self._function._cache_size()


def make_train_step(recipe: Recipe) -> TrainStep:
    """Compile one training step: ``step(state, totals, source) -> (state, totals, logs)``.

    ``source`` is a `Batch`, or a `Sampler`, whose batch of this step is then cut inside the compiled
    function. The state and the totals that go in are given away (donated): use what comes out.

    Where the loss or the gradient is not finite, the step is skipped: nothing of the state moves but its
    counters, and the totals count one more skipped step.

    Recipes that differ in their numbers alone share one compiled function: a sweep over learning rates,
    rates of stochastic depth, thresholds or loss weights compiles once.
    """
    return Bound(_compiled_train_step(recipe.plan), recipe.numbers)


@lru_cache(maxsize=8)
def _compiled_train_step(plan: Plan) -> Callable[..., Any]:
    return jit(numbered_train_step(plan), donate_argnums=(1, 2))


def make_eval_step(loss: Loss, thresholds: Listed) -> EvalStep:
    """Compile the evaluation of a batch: ``step(state, totals, source, position) -> (totals, logs)``.

    ``source`` is a `Batch`, or a `Sampler`, whose batch number ``position`` is cut inside. The totals that
    go in are given away. Where the state has a moving average of the weights, that is evaluated. Losses that
    differ in their weights alone, and as many thresholds, share one compiled function.
    """
    return Bound(_compiled_eval_step(split_weights(loss)[0]), scoring_numbers(loss, thresholds))


@lru_cache(maxsize=8)
def _compiled_eval_step(plain: Loss) -> Callable[..., Any]:
    return jit(numbered_eval_step(plain), donate_argnums=2)


@jit
def predict_step(
    state: TrainState,
    dsm: Float[Array, "batch height width 1"],
    threshold: Float[Array, " batch"],
    resolution: Float[Array, " batch"] | None = None,
) -> Float[Array, "batch height width 1"]:
    """Gap probabilities of a batch, float32."""
    logits, _ = state.apply(state.scored_params, state.model_state, dsm, threshold, **state.told(resolution))
    return jax.nn.sigmoid(logits.astype(jnp.float32))
