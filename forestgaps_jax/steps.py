"""The three compiled functions: train on a batch, evaluate a batch, predict."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from forestgaps_jax.config import Config
from forestgaps_jax.loss import Loss, create_loss_function
from forestgaps_jax.metrics import ConfusionCounts, threshold_index
from forestgaps_jax.optimization import create_optimizer, create_scheduler
from forestgaps_jax.state import TrainState
from forestgaps_jax.types import Batch, Sampler, pytree_dataclass


@pytree_dataclass
class Totals:
    """What an epoch adds up on the device.

    Attributes:
        loss: sum over batches of the loss times the batch's valid pixels.
        pixels: valid pixels, as the weight of the loss.
        counts: exact confusion, one row a listed threshold and one for the others.
    """

    loss: Float[Array, ""]
    pixels: Float[Array, ""]
    counts: ConfusionCounts

    @staticmethod
    def zeros(thresholds: tuple[float, ...]) -> "Totals":
        """Nothing added yet."""
        return Totals(jnp.zeros(()), jnp.zeros(()), ConfusionCounts.zeros(len(thresholds) + 1))

    def add(
        self, loss: Float[Array, ""], logits: Array, batch: Batch, thresholds: tuple[float, ...]
    ) -> "Totals":
        """Add a batch's loss and counts."""
        valid = jnp.ones(batch.mask.shape, bool) if batch.valid is None else jnp.asarray(batch.valid)
        pixels = jnp.sum(valid, dtype=jnp.float32)
        group = threshold_index(jnp.asarray(batch.threshold), thresholds)
        counts = self.counts.update(logits > 0, jnp.asarray(batch.mask) > 0.5, group=group, valid=valid)
        return Totals(self.loss + loss * pixels, self.pixels + pixels, counts)


class StepLogs(NamedTuple):
    """Scalars of one step, still on the device."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


_OUTSIDE_THE_STEP = {"name", "runs_dir", "seed", "monitor_metric", "dsm", "chm", "tile_overlap", "block_size"}
_OUTSIDE_THE_STEP |= {"min_valid_fraction", "split_buffer", "val_fraction", "test_fraction", "figure_tiles"}
_OUTSIDE_THE_STEP |= {"virtual_sites", "virtual_size", "virtual_resolution", "virtual_slope"}
_OUTSIDE_THE_STEP |= {"use_progress_bar", "use_tensorboard"}
"""Settings that do not change what is compiled."""

TrainStep = Callable[[TrainState, Totals, Any], tuple[TrainState, Totals, StepLogs]]
EvalStep = Callable[[TrainState, Totals, Any, Any], tuple[Totals, Array]]


def make_train_step(config: Config, steps_per_epoch: int) -> TrainStep:
    """Compile one optimizer step: ``step(state, totals, source) -> (state, totals, logs)``.

    ``source`` is a `Batch`, or a `Sampler`, whose batch of this step is then cut inside the compiled
    function. The state and the totals that go in are given away (donated): use what comes out.

    Equal settings give the same function, so training again does not compile again.
    """
    settings = tuple((k, v) for k, v in config.to_dict().items() if k not in _OUTSIDE_THE_STEP)
    return _compiled_train_step(settings, steps_per_epoch)


@lru_cache(maxsize=8)
def _compiled_train_step(settings: tuple[tuple[str, Any], ...], steps_per_epoch: int) -> TrainStep:
    config = Config(**dict(settings))
    step = train_step(
        create_loss_function(config),
        create_optimizer(config, create_scheduler(config, steps_per_epoch)),
        config.thresholds,
    )
    return jax.jit(step, donate_argnums=(0, 1))


def train_step(
    loss_function: Loss, optimizer: optax.GradientTransformation, thresholds: tuple[float, ...]
) -> TrainStep:
    """The pure function that `make_train_step` compiles."""

    def step(state: TrainState, totals: Totals, source: Batch | Sampler):
        batch = source.sample(state.step) if isinstance(source, Sampler) else source
        dropout, drop_path = jax.random.split(jax.random.fold_in(state.rng, state.step))

        def loss_of(params: Any):
            rngs = nnx.Rngs(dropout=dropout, drop_path=drop_path)
            logits, model_state = state.apply(
                params, state.model_state, batch.dsm, batch.threshold, rngs=rngs, train=True
            )
            return loss_function(logits, batch.mask, valid=batch.valid), (logits, model_state)

        (loss, (logits, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, model_state, opt_state, state.rng, state.apply)
        logs = StepLogs(loss, optax.tree.norm(grads))
        return state, totals.add(loss, logits, batch, thresholds), logs

    return step


def make_eval_step(config: Config) -> EvalStep:
    """Compile the evaluation of a batch: ``step(state, totals, source, position) -> (totals, loss)``.

    ``source`` is a `Batch`, or a `Sampler`, whose batch number ``position`` is cut inside. The totals that
    go in are given away.
    """
    return _compiled_eval_step(create_loss_function(config), config.thresholds)


@lru_cache(maxsize=8)
def _compiled_eval_step(loss_function: Loss, thresholds: tuple[float, ...]) -> EvalStep:
    def step(state: TrainState, totals: Totals, source: Batch | Sampler, position: Array):
        batch = source.sample(position) if isinstance(source, Sampler) else source
        logits, _ = state.apply(state.params, state.model_state, batch.dsm, batch.threshold)
        loss = loss_function(logits, batch.mask, valid=batch.valid)
        return totals.add(loss, logits, batch, thresholds), loss

    return jax.jit(step, donate_argnums=1)


@jax.jit
def predict_step(
    state: TrainState, dsm: Float[Array, "batch height width 1"], threshold: Float[Array, " batch"]
) -> Float[Array, "batch height width 1"]:
    """Gap probabilities of a batch, float32."""
    logits, _ = state.apply(state.params, state.model_state, dsm, threshold)
    return jax.nn.sigmoid(logits.astype(jnp.float32))
