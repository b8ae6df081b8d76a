"""The steps of many states: stacked in one program, or one after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from forestgaps_jax.compilation import jit
from forestgaps_jax.loss import Loss, split_weights
from forestgaps_jax.recipe import Plan, Recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import (
    as_arrays,
    make_eval_step,
    make_train_step,
    numbered_eval_step,
    numbered_train_step,
    scoring_numbers,
)


@dataclass
class Together:
    """States, and the steps of all of them.

    Attributes:
        states: stacked, or a list.
        step: ``step(states, totals, batch) -> (states, totals, logs, logs of the first)``.
        score: ``score(states, totals, batch, position) -> (totals, logs of the first)``.
        combine: from a list to what the steps take.
        separate: from what they give to a list.
    """

    states: Any
    step: Callable[..., Any]
    score: Callable[..., Any]
    combine: Callable[[Sequence[Any]], Any]
    separate: Callable[[Any], list[Any]]


def vectorize(states: Sequence[TrainState], recipes: Sequence[Recipe]) -> Together:
    """All in one program; recipes differ in their numbers alone."""
    step, score = _vectorized_steps(recipes[0].plan, split_weights(recipes[0].score_loss)[0])
    trained = _stack([as_arrays(recipe.numbers) for recipe in recipes])
    scored = _stack([as_arrays(scoring_numbers(recipe.score_loss, recipe.thresholds)) for recipe in recipes])
    return Together(
        states=_stack(states),
        step=lambda *arguments: step(trained, *arguments),
        score=lambda *arguments: score(scored, *arguments),
        combine=_stack,
        separate=_unstack,
    )


def take_turns(states: Sequence[TrainState], recipes: Sequence[Recipe]) -> Together:
    """One after another at each batch; recipes differ in their numbers alone."""
    steps: list[Any] = [make_train_step(recipe) for recipe in recipes]
    scores: list[Any] = [make_eval_step(recipe.score_loss, recipe.thresholds) for recipe in recipes]

    def step_all(states: list[Any], totals: list[Any], batch: Any) -> Any:
        taken = [step(*own, batch) for step, *own in zip(steps, states, totals, strict=True)]
        states, totals, logs = map(list, zip(*taken, strict=True))
        return states, totals, logs, logs[0]

    def score_all(states: list[Any], totals: list[Any], batch: Any, position: Any) -> Any:
        scored = [score(*own, batch, position) for score, *own in zip(scores, states, totals, strict=True)]
        return [totals for totals, _ in scored], scored[0][1]

    # The steps give their buffers away; the caller keeps theirs.
    return Together([jax.tree.map(jnp.copy, state) for state in states], step_all, score_all, list, list)


@lru_cache(maxsize=8)
def _vectorized_steps(plan: Plan, loss: Loss) -> tuple[Callable[..., Any], Callable[..., Any]]:
    take = jax.vmap(numbered_train_step(plan), (0, 0, 0, None))
    rate = jax.vmap(numbered_eval_step(loss), (0, 0, 0, None, None))

    def step(*arguments: Any) -> Any:
        states, totals, logs = take(*arguments)
        return states, totals, logs, _first(logs)

    def score(*arguments: Any) -> Any:
        totals, logs = rate(*arguments)
        return totals, _first(logs)

    return jit(step, donate_argnums=(1, 2)), jit(score, donate_argnums=2)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree: Any) -> list[Any]:
    count = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda leaf: leaf[number], tree) for number in range(count)]  # noqa: B023 - called at once
