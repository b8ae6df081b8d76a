"""One training step, a pure function of state, totals and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from forestgaps_jax.parallel import keep_state, share_batch
from forestgaps_jax.recipe import Numbers, Plan, Recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps.forward import as_scored, decisions_of, forward, wrong_labels
from forestgaps_jax.steps.update import guarded, learning_rate, parts, updated
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import Batch, Sampler


class StepLogs(NamedTuple):
    """Scalars of one training step, still on the device.

    Attributes:
        loss: of the batch.
        grad_norm: global norm of the gradients, before any clipping.
        lr: learning rate that was used; NaN where only the optimizer knows it.
        skipped_in_a_row: steps up to this one that changed nothing, as loss or gradient was not finite.
        wrong_labels: valid pixels of a given batch whose mask is neither 0 nor 1; None for a sampler, which
            makes its masks itself.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    lr: Float[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    wrong_labels: Int[Array, ""] | None


TrainStep = Callable[[TrainState, Totals, Any], tuple[TrainState, Totals, StepLogs]]


def numbered_train_step(plan: Plan) -> Callable[..., Any]:
    """The pure function ``step(numbers, state, totals, source) -> (state, totals, logs)`` of a plan."""

    def step(numbers: Numbers, state: TrainState, totals: Totals, source: Batch | Sampler):
        return train_step(plan.recipe(numbers))(state, totals, source)

    return step


def train_step(recipe: Recipe) -> TrainStep:
    """The pure function that `make_train_step` compiles."""

    def step(state: TrainState, totals: Totals, source: Batch | Sampler):
        batch = share_batch(_sampled(source, state.step) if isinstance(source, Sampler) else source)
        (loss, (output, model_state)), grads = gradients(recipe, state, batch)
        norm = optax.tree.norm(grads)
        # Once the training has diverged its state stays, until the host has seen it.
        diverged = state.skipped_in_a_row >= recipe.max_skipped_steps
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & ~diverged
        rate, wrong = learning_rate(recipe, state), wrong_labels(source)
        state = keep_state(guarded(state, updated(recipe, state, grads, model_state), finite))
        batch = as_scored(recipe.loss, batch)
        decisions = decisions_of(recipe.loss, output, batch, recipe.thresholds)
        totals = totals.add(loss, output, batch, decisions, norm, finite)
        return state, totals, StepLogs(loss, norm, rate, state.skipped_in_a_row, wrong)

    return step


def gradients(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[tuple[Array, tuple[Array, Any]], Any]:
    """Loss, network output, new model state, and the gradients of `TrainState.trained`, in one training step.

    Returns:
        ``((loss, (output, model_state)), gradients)``, as ``jax.value_and_grad`` gives them.
    """

    def loss_of(trained: Any):
        params, loss_params = parts(state, trained)
        options = _training_options(recipe, state)
        loss, output, model_state = forward(recipe.loss, state, params, loss_params, batch, **options)
        return loss, (output, model_state)

    return jax.value_and_grad(loss_of, has_aux=True)(state.trained)


def _training_options(recipe: Recipe, state: TrainState) -> dict[str, Any]:
    """Keys of this step, and the chance to drop a branch where that follows a schedule."""
    dropout, drop_path = jax.random.split(jax.random.fold_in(state.rng, state.step))
    options: dict[str, Any] = {"train": True, "rngs": nnx.Rngs(dropout=dropout, drop_path=drop_path)}
    if recipe.drop_path_rate is not None:
        options["drop_path_rate"] = recipe.drop_path_rate(state.step)
    return options


def _sampled(source: Sampler, step: Array) -> Batch:
    """The batch of a step, in memory before the network sees it.

    XLA's compiler for CPU would fuse what makes a batch into each of its many readers and compute it many
    times over. By default it drops optimization barriers, but it does not fuse into or out of a branch.
    """

    def apart(step: Array) -> Batch:
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(source.sample, step)
        )
        return jax.lax.cond(step >= 0, source.sample, lambda _: nothing, step)

    return jax.lax.platform_dependent(step, cpu=apart, default=source.sample)
