"""One step of an evaluation, a pure function of state, totals and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from forestgaps_jax.loss import Loss, join_weights, split_weights
from forestgaps_jax.parallel import share_batch
from forestgaps_jax.recipe import Numbers
from forestgaps_jax.state import TrainState
from forestgaps_jax.steps.forward import as_scored, decisions_of, forward, wrong_labels
from forestgaps_jax.totals import Decisions, Totals
from forestgaps_jax.types import Batch, Listed, Sampler


class EvalLogs(NamedTuple):
    """The loss of one evaluated batch, its decisions, and its wrong labels, still on the device."""

    loss: Float[Array, ""]
    decisions: Decisions
    wrong_labels: Int[Array, ""] | None


EvalStep = Callable[[TrainState, Totals, Any, Any], tuple[Totals, EvalLogs]]


def scoring_numbers(loss: Loss, thresholds: Listed) -> Numbers:
    """What a compiled evaluation takes as arguments."""
    return {"loss": split_weights(loss)[1], "thresholds": thresholds}


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
        value, output, _ = forward(loss, state, state.scored_params, state.loss_params, batch)
        batch = as_scored(loss, batch)
        decisions = decisions_of(loss, output, batch, thresholds)
        logs = EvalLogs(value, decisions, wrong_labels(source))
        return totals.add(value, output, batch, decisions), logs

    return step
