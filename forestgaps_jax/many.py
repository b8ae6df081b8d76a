"""Many trainings at once: the same network and data, other seeds, learning rates or loss weights."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.compilation_cache import use_cache
from forestgaps_jax.config import Config
from forestgaps_jax.data.reading import as_data, read_batches, steps_per_epoch
from forestgaps_jax.epochs import HISTORY, no_totals
from forestgaps_jax.evaluation import one_pass
from forestgaps_jax.in_flight import InFlight
from forestgaps_jax.readiness import check_state, threshold_weights
from forestgaps_jax.recipe import Recipe, make_recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps import predicts_heights
from forestgaps_jax.together import Together, take_turns, vectorize
from forestgaps_jax.totals import Totals
from forestgaps_jax.types import Data, Site


def train_many(
    states: Sequence[TrainState],
    config: Config | Sequence[Config],
    data: Data | Mapping[str, Any] | Site | Sequence[Site],
    *,
    vectorized: bool | None = None,
) -> tuple[list[TrainState], list[dict[str, list[Any]]]]:
    """Train K states on the same batches, each with its own numbers, by one compiled step.

    Nothing is written to disk, and there are no callbacks. A member whose training diverges stays as it is
    while the others go on.

    Args:
        states: one a member, from `create_state` with models alike but for their weights, such as of K seeds.
        config: the settings of all, or one a member; these may differ in what a compiled step takes as
            arguments, but for the thresholds: learning rates, weight decay, rates of stochastic depth, loss
            weights.
        data: as for `train`; the batches of all, by the first settings.
        vectorized: one program for all (`jax.vmap`), or the members in turns. None: in turns on a CPU, whose
            convolutions get slower in one program (``benchmarks/many.py``).

    Returns:
        The trained states, and a history for each, as `train` gives it; ``epoch_times`` are of all together.

    Raises:
        ValueError: members that no one step can train, or settings that `train` would refuse.

    >>> from forestgaps_jax import Config, create_model, create_state, train_many
    >>> from forestgaps_jax.data import virtual_forest
    >>> from flax import nnx
    >>> config = Config(epochs=1, features=2, depth=1, tile_size=16, opening_windows=(5,))
    >>> options = {"features": 2, "depth": 1, "opening_windows": (5,)}
    >>> models = [create_model("unet_film", rngs=nnx.Rngs(seed), **options) for seed in range(2)]
    >>> states = [create_state(model, config) for model in models]
    >>> states, histories = train_many(states, config, virtual_forest(0, (128, 128)))
    >>> len(histories), len(histories[0]["train_loss"])
    (2, 1)
    """
    configs = [config] * len(states) if isinstance(config, Config) else list(config)
    if configs:
        use_cache(configs[0].compilation_cache_dir)
    members = _members(states, configs, data)
    if vectorized is None:
        vectorized = jax.default_backend() != "cpu"
    arguments = members.states, members.recipes
    together = vectorize(*arguments) if vectorized else take_turns(*arguments)
    with _bar(configs[0], members.steps) as advance:
        for epoch in range(members.begun, configs[0].epochs):
            _run_epoch(members, together, epoch, advance)
    return together.separate(together.states), members.histories


@dataclass(frozen=True)
class _Members:
    """What is trained.

    Attributes:
        data: of all.
        steps: batches in an epoch.
        begun: epochs that the states have behind them.
    """

    states: list[TrainState]
    configs: list[Config]
    recipes: list[Recipe]
    data: Data
    steps: int
    begun: int
    histories: list[dict[str, list[Any]]]


def _members(states: Sequence[TrainState], configs: list[Config], data: Any) -> _Members:
    """Check the members."""
    if not states or len(configs) != len(states):
        raise ValueError(f"{len(states)} states and {len(configs)} configs: must be one or more, and as many")
    for config in configs:
        config.validate()
        if config.use_early_stopping or config.scheduler_type in ("plateau", "warmup_plateau"):
            raise ValueError(
                f"use_early_stopping = {config.use_early_stopping}, scheduler_type = "
                f"{config.scheduler_type!r}: members that follow their own metric are trained by train"
            )
    data = as_data(data, configs[0])
    steps = steps_per_epoch(data.train)
    recipes = [make_recipe(c, steps, threshold_weights=threshold_weights(c, data)) for c in configs]
    for number, (state, config, recipe) in enumerate(zip(states, configs, recipes, strict=True)):
        check_state(state, config, recipe)
        if recipe.plan != recipes[0].plan or config.thresholds != configs[0].thresholds:
            raise ValueError(f"member {number} differs from the first in {_difference(configs[0], config)}")
        if jax.tree.structure(state) != jax.tree.structure(states[0]) or _shapes(state) != _shapes(states[0]):
            raise ValueError(f"member {number} has another network or optimizer than the first")
    begun = {int(state.step) for state in states}
    if len(begun) > 1 or begun.pop() % steps:
        raise ValueError("the states must have taken equally many steps, in whole epochs")
    histories = [{name: [] for name in HISTORY} for _ in states]
    return _Members(list(states), configs, recipes, data, steps, int(states[0].step) // steps, histories)


def _difference(first: Config, other: Config) -> str:
    mine, theirs = first.to_dict(), other.to_dict()
    differing = [f"{name} ({mine[name]} and {theirs[name]})" for name in mine if mine[name] != theirs[name]]
    return f"{', '.join(differing)}: some of these are part of the compiled step, and must be the same"


def _shapes(state: TrainState) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(state)]


def _run_epoch(members: _Members, together: Together, epoch: int, advance: Callable[[], Any]) -> None:
    start = time.perf_counter()
    totals = together.combine([no_totals(recipe) for recipe in members.recipes])
    in_flight, logs = InFlight(), None
    for number, batch in enumerate(read_batches(members.data.train, epoch=epoch)):
        together.states, totals, logs, first = together.step(together.states, totals, batch)
        in_flight.push(number, batch, first)
        advance()
    in_flight.drain()
    trained, rates = together.separate(totals), together.separate(logs)
    scored = _validate(members, together)
    seconds = time.perf_counter() - start
    for number, history in enumerate(members.histories):
        thresholds = members.configs[0].thresholds
        train = trained[number].summary(thresholds)
        val = scored[number].summary(thresholds) if scored else {}
        losses = train["loss"], val.get("loss", float("nan"))
        entry = (*losses, train, val, float(rates[number].lr), seconds)
        for name, value in zip(HISTORY, entry, strict=True):
            history[name].append(value)
        if train["skipped_steps"] == members.steps:
            logging.getLogger(__name__).warning("member %d has diverged: it stays as it is", number)


def _validate(members: _Members, together: Together) -> list[Totals]:
    if members.data.val is None:
        return []
    heights, config = predicts_heights(members.recipes[0].loss), members.configs[0]
    source = one_pass(members.data.val, config) if heights else members.data.val
    zeros = Totals.zeros(config.thresholds, histogram=True, heights=heights)
    totals = together.combine([jax.tree.map(jnp.copy, zeros) for _ in members.states])
    in_flight = InFlight()
    for number, batch in enumerate(read_batches(source)):
        totals, first = together.score(together.states, totals, batch, np.int32(number))
        in_flight.push(number, batch, first)
    in_flight.drain()
    return together.separate(totals)


@contextmanager
def _bar(config: Config, steps: int) -> Iterator[Callable[[], Any]]:
    """What moves a progress bar, where somebody looks."""
    watched = config.use_progress_bar and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda: None
        return
    with tqdm(total=config.epochs * steps, unit="step", leave=False, disable=not watched) as bar:
        yield bar.update
