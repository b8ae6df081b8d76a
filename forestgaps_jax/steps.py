"""The three compiled functions: train on a batch, evaluate a batch, predict."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from forestgaps_jax.compilation import jit
from forestgaps_jax.loss import Loss, join_weights, split_weights
from forestgaps_jax.parallel import keep_state, share_batch
from forestgaps_jax.recipe import Numbers, Plan, Recipe
from forestgaps_jax.state import TrainState
from forestgaps_jax.totals import Decisions, Totals, decide, decide_heights
from forestgaps_jax.types import Batch, Listed, Sampler, one_a_sample


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


class EvalLogs(NamedTuple):
    """The loss of one evaluated batch, its decisions, and its wrong labels, still on the device."""

    loss: Float[Array, ""]
    decisions: Decisions
    wrong_labels: Int[Array, ""] | None


TrainStep = Callable[[TrainState, Totals, Any], tuple[TrainState, Totals, StepLogs]]
EvalStep = Callable[[TrainState, Totals, Any, Any], tuple[Totals, EvalLogs]]


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


def predicts_heights(loss: Loss) -> bool:
    """Whether the loss is of canopy height, so that the network's output is metres and not logits."""
    return getattr(loss, "target", "mask") == "chm"


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
        rate, wrong = _learning_rate(recipe, state), _wrong_labels(source)
        state = keep_state(_guarded(state, _updated(recipe, state, grads, model_state), finite))
        batch = _as_scored(recipe.loss, batch)
        decisions = _decide(recipe.loss, output, batch, recipe.thresholds)
        totals = totals.add(loss, output, batch, decisions, norm, finite)
        return state, totals, StepLogs(loss, norm, rate, state.skipped_in_a_row, wrong)

    return step


def gradients(recipe: Recipe, state: TrainState, batch: Batch) -> tuple[tuple[Array, tuple[Array, Any]], Any]:
    """Loss, network output, new model state, and the gradients of `TrainState.trained`, in one training step.

    Returns:
        ``((loss, (output, model_state)), gradients)``, as ``jax.value_and_grad`` gives them.
    """

    def loss_of(trained: Any):
        params, loss_params = _parts(state, trained)
        options = _training_options(recipe, state)
        loss, output, model_state = _forward(recipe.loss, state, params, loss_params, batch, **options)
        return loss, (output, model_state)

    return jax.value_and_grad(loss_of, has_aux=True)(state.trained)


def make_eval_step(loss: Loss, thresholds: Listed) -> EvalStep:
    """Compile the evaluation of a batch: ``step(state, totals, source, position) -> (totals, logs)``.

    ``source`` is a `Batch`, or a `Sampler`, whose batch number ``position`` is cut inside. The totals that
    go in are given away. Where the state has a moving average of the weights, that is evaluated. Losses that
    differ in their weights alone, and as many thresholds, share one compiled function.
    """
    return Bound(_compiled_eval_step(split_weights(loss)[0]), scoring_numbers(loss, thresholds))


def scoring_numbers(loss: Loss, thresholds: Listed) -> Numbers:
    """What a compiled evaluation takes as arguments."""
    return {"loss": split_weights(loss)[1], "thresholds": thresholds}


@lru_cache(maxsize=8)
def _compiled_eval_step(plain: Loss) -> Callable[..., Any]:
    return jit(numbered_eval_step(plain), donate_argnums=2)


def numbered_eval_step(plain: Loss) -> Callable[..., Any]:
    """The pure function ``step(numbers, state, totals, source, position) -> (totals, logs)`` of a loss.

    Args:
        plain: the loss without its weights; these are in ``numbers``, with the thresholds.
    """

    def step(
        numbers: Numbers, state: TrainState, totals: Totals, source: Batch | Sampler, position: Array
    ) -> tuple[Totals, EvalLogs]:
        loss, thresholds = join_weights(plain, numbers["loss"]), numbers["thresholds"]
        batch = share_batch(source.sample(position) if isinstance(source, Sampler) else source)
        value, output, _ = _forward(loss, state, state.scored_params, state.loss_params, batch)
        batch = _as_scored(loss, batch)
        decisions = _decide(loss, output, batch, thresholds)
        logs = EvalLogs(value, decisions, _wrong_labels(source))
        return totals.add(value, output, batch, decisions), logs

    return step


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


def _sampled(source: Sampler, step: Array) -> Batch:
    """The batch of a step, in memory before the network sees it.

    XLA's compiler for CPU would fuse what makes a batch into each of its many readers and compute it many
    times over. It drops optimization barriers, but does not fuse into or out of a branch.
    """

    def apart(step: Array) -> Batch:
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(source.sample, step)
        )
        return jax.lax.cond(step >= 0, source.sample, lambda _: nothing, step)

    return jax.lax.platform_dependent(step, cpu=apart, default=source.sample)


def _forward(
    loss: Loss, state: TrainState, params: Any, loss_params: Any, batch: Batch, **options: Any
) -> tuple[Array, Array, Any]:
    """Loss, output of the network and new model state."""
    heights = predicts_heights(loss)
    if heights and batch.chm is None:
        raise ValueError("a loss of canopy height needs batches with chm, the true heights in metres")
    output, model_state = _network(state, params, batch, heights, options)
    batch = _as_scored(loss, batch)
    also: dict[str, Any] = {}
    if getattr(loss, "learns", False):
        also["params"] = loss_params
    if getattr(loss, "needs_threshold", False):
        also["threshold"] = batch.threshold
    targets = batch.chm if heights else batch.mask
    return loss(output, targets, valid=batch.valid, **also), output, model_state


def _network(
    state: TrainState, params: Any, batch: Batch, heights: bool, options: dict[str, Any]
) -> tuple[Array, Any]:
    """Canopy heights of each tile, or logits of each tile's thresholds, as one sample each."""
    if not (heights or getattr(state.apply, "several_thresholds", False)):
        batch = batch.by_threshold()
    threshold = None if heights else batch.threshold
    options = options | state.told(batch.resolution)
    output, model_state = state.apply(params, state.model_state, batch.dsm, threshold, **options)
    several = threshold is not None and threshold.ndim == 2
    return one_a_sample(output) if several else output, model_state


def _as_scored(loss: Loss, batch: Batch) -> Batch:
    """One threshold a sample; heights are of tiles, whatever thresholds these come with."""
    return batch if predicts_heights(loss) else batch.by_threshold()


def _decide(loss: Loss, output: Array, batch: Batch, thresholds: Listed) -> Decisions:
    return (decide_heights if predicts_heights(loss) else decide)(output, batch, thresholds)


def _training_options(recipe: Recipe, state: TrainState) -> dict[str, Any]:
    """Keys of this step, and the chance to drop a branch where that follows a schedule."""
    dropout, drop_path = jax.random.split(jax.random.fold_in(state.rng, state.step))
    options: dict[str, Any] = {"train": True, "rngs": nnx.Rngs(dropout=dropout, drop_path=drop_path)}
    if recipe.drop_path_rate is not None:
        options["drop_path_rate"] = recipe.drop_path_rate(state.step)
    return options


def _learning_rate(recipe: Recipe, state: TrainState) -> Array:
    if recipe.learning_rate is None:
        return jnp.full((), jnp.nan)
    rate = jnp.asarray(recipe.learning_rate(state.taken // recipe.accumulation), jnp.float32)
    return rate if state.plateau is None else rate * state.plateau.scale


def _updated(recipe: Recipe, state: TrainState, grads: Any, model_state: Any) -> TrainState:
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.trained)
    if state.plateau is not None:
        updates = optax.tree.scale(state.plateau.scale, updates)
    params, loss_params = _parts(state, optax.apply_updates(state.trained, updates))
    return replace(
        state,
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        loss_params=loss_params,
        ema_params=_averaged(recipe, state, params),
    )


def _guarded(before: TrainState, after: TrainState, finite: Bool[Array, ""]) -> TrainState:
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


def _wrong_labels(source: Batch | Sampler) -> Int[Array, ""] | None:
    """How many labels are none; a sampler makes them itself."""
    if isinstance(source, Sampler):
        return None
    mask = jnp.asarray(source.mask)
    return jnp.sum(jnp.asarray(source.counted) & (mask != 0) & (mask != 1), dtype=jnp.int32)


def _parts(state: TrainState, trained: Any) -> tuple[Any, Any]:
    """Parameters of the network and of the loss out of `TrainState.trained`."""
    return (trained, None) if state.loss_params is None else trained


def _averaged(recipe: Recipe, state: TrainState, params: Any) -> Any:
    """The moving average after an optimizer step; short at first, so that the start is soon forgotten."""
    if state.ema_params is None:
        return None
    updates, left = divmod(state.taken + 1, recipe.accumulation)
    decay = jnp.minimum(recipe.ema_decay, (1.0 + updates) / (10.0 + updates))
    return optax.incremental_update(params, state.ema_params, jnp.where(left == 0, 1.0 - decay, 0.0))
