"""From gradients to the next state."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from forestgaps_jax.recipe import Recipe
from forestgaps_jax.state import TrainState


def learning_rate(recipe: Recipe, state: TrainState) -> Array:
    """That of this step; NaN where only the optimizer knows it."""
    if recipe.learning_rate is None:
        return jnp.full((), jnp.nan)
    rate = jnp.asarray(recipe.learning_rate(state.taken // recipe.accumulation), jnp.float32)
    return rate if state.plateau is None else rate * state.plateau.scale


def updated(recipe: Recipe, state: TrainState, grads: Any, model_state: Any) -> TrainState:
    """The state that the optimizer makes of these gradients."""
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.trained)
    if state.plateau is not None:
        updates = optax.tree.scale(state.plateau.scale, updates)
    params, loss_params = parts(state, optax.apply_updates(state.trained, updates))
    return replace(
        state,
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        loss_params=loss_params,
        ema_params=_averaged(recipe, state, params),
    )


def guarded(before: TrainState, after: TrainState, finite: Bool[Array, ""]) -> TrainState:
    """The state after a step that counts only where it is finite."""

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(finite, new, old)

    moved = ("params", "model_state", "opt_state", "loss_params", "ema_params")
    return replace(
        before,
        step=before.step + 1,
        skipped=before.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, before.skipped_in_a_row + 1),
        **{name: jax.tree.map(chosen, getattr(after, name), getattr(before, name)) for name in moved},
    )


def parts(state: TrainState, trained: Any) -> tuple[Any, Any]:
    """Parameters of the network and of the loss out of `TrainState.trained`."""
    return (trained, None) if state.loss_params is None else trained


def _averaged(recipe: Recipe, state: TrainState, params: Any) -> Any:
    """The moving average after an optimizer step; short at first, so that the start is soon forgotten."""
    if state.ema_params is None:
        return None
    updates, left = divmod(state.taken + 1, recipe.accumulation)
    decay = jnp.minimum(recipe.ema_decay, (1.0 + updates) / (10.0 + updates))
    return optax.incremental_update(params, state.ema_params, jnp.where(left == 0, 1.0 - decay, 0.0))
