"""What a checkpoint holds of a training beside its state, so that it goes on as if never stopped."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from forestgaps_jax.callbacks.base import Callback
from forestgaps_jax.callbacks.run import Position, Run
from forestgaps_jax.checkpoint import Checkpoint
from forestgaps_jax.metrics import from_json, to_json
from forestgaps_jax.parallel import is_alone
from forestgaps_jax.totals import Totals


def information(run: Run) -> dict[str, Any]:
    """The JSON of a checkpoint: settings, history, and where the training stands."""
    position = run.position
    return to_json(
        {
            "config": run.config.to_dict(),
            "history": run.history,
            "position": {
                "epoch": position.epoch,
                "batch": position.batch,
                "seconds": position.seconds,
                "source": position.place_in_source(),
            },
            "steps_per_epoch": run.steps_per_epoch,
        }
    )


def progress(run: Run) -> dict[str, Any]:
    """The arrays of a checkpoint: sums of the epoch begun, and what the callbacks keep."""
    arrays: dict[str, Any] = {}
    if run.position.totals is not None:
        arrays["totals"] = jax.tree.leaves(run.position.totals)
        arrays["lr"] = run.position.lr
    # Of several processes all write, so all must have the same.
    alone = is_alone()
    kept = [(name, callback) for name, callback in _named(run.callbacks) if alone or not callback.main_only]
    states = {name: state for name, callback in kept if (state := callback.state_dict())}
    return arrays | ({"callbacks": states} if states else {})


def position_of(saved: Checkpoint, empty: Totals) -> Position:
    """Where a saved training stands; ``empty`` gives the structure of its sums."""
    position = Position(**saved.info["position"])
    if "totals" in saved.progress:
        leaves, structure = jax.tree.flatten(empty)
        if [leaf.shape for leaf in saved.progress["totals"]] != [leaf.shape for leaf in leaves]:
            raise ValueError(
                "the checkpoint is of the midst of an epoch whose sums are of other thresholds or another "
                "loss: go on with the settings that it was saved with"
            )
        position.totals = jax.tree.unflatten(structure, map(jnp.array, saved.progress["totals"]))
        position.lr = jnp.array(saved.progress["lr"])
    return position


def history_of(saved: Checkpoint) -> dict[str, list[Any]]:
    """The history of a saved training."""
    return from_json(saved.info["history"])


def restore_callbacks(run: Run, saved: Checkpoint) -> None:
    """Give each callback what one of its kind has kept; those that are new begin anew."""
    states = dict(saved.progress.get("callbacks", {}))
    for name, callback in _named(run.callbacks):
        if (state := states.pop(name, None)) is not None:
            callback.load_state_dict(state)
    if states:
        logging.getLogger(__name__).warning(
            "the checkpoint has what callbacks have kept that this training lacks: %s", ", ".join(states)
        )


def _named(callbacks: list[Callback]) -> Iterator[tuple[str, Callback]]:
    """Callbacks by their class, numbered from the second of a class on."""
    seen = Counter[str]()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}", callback
