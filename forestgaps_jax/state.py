"""All that training changes, as one pytree."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from forestgaps_jax.config import Config
from forestgaps_jax.loss import Loss, create_loss_function
from forestgaps_jax.optimization import create_plateau
from forestgaps_jax.recipe import Optimizer, make_optimizer, takes
from forestgaps_jax.types import pytree_dataclass

Apply = Callable[..., tuple[Float[Array, "batch height width 1"], Any]]
"""``apply(params, model_state, dsm, threshold, rngs=None, train=False) -> (logits, model_state)``.

With scheduled stochastic depth it also gets ``drop_path_rate``, and ``resolution`` (metres a pixel,
``[batch]``) where that is known and it takes an argument of that name, or any; a network that predicts
heights, trained on a loss of heights, gets None for the threshold."""


@pytree_dataclass
class TrainState:
    """A training's whole state: save it and nothing is lost.

    A model of another library fits by giving its own ``apply``; `init_state` makes the rest.

    Attributes:
        step: batches seen.
        params: what is trained.
        model_state: what the forward pass changes: running statistics.
        opt_state: state of the optimizer and its schedule, for `trained`.
        rng: key that every random draw is folded from, by step.
        apply: the forward pass, a hashable pure function (see `Apply`).
        skipped: batches that were left out because the loss or a gradient was infinite or NaN.
        skipped_in_a_row: those up to the latest batch.
        loss_params: what a loss learns, such as the weights of its parts; None where it learns nothing.
        ema_params: moving average of the parameters; None without.
        plateau: state of a learning rate that follows a metric; None for other schedules.
    """

    step: Int[Array, ""]
    params: Any
    model_state: Any
    opt_state: Any
    rng: PRNGKeyArray
    apply: Apply = field(metadata={"static": True})
    skipped: Int[Array, ""] = field(default_factory=lambda: jnp.zeros((), jnp.int32))
    skipped_in_a_row: Int[Array, ""] = field(default_factory=lambda: jnp.zeros((), jnp.int32))
    loss_params: Any = None
    ema_params: Any = None
    plateau: Any = None

    @property
    def trained(self) -> Any:
        """What the optimizer moves: the parameters, paired with those of the loss where it has some."""
        return self.params if self.loss_params is None else (self.params, self.loss_params)

    def told(self, resolution: Any) -> dict[str, Any]:
        """The argument ``resolution`` for `apply`, where it takes one and it is known."""
        wanted = getattr(self.apply, "takes_resolution", None)
        wanted = takes(self.apply, "resolution") if wanted is None else wanted
        return {"resolution": resolution} if wanted and resolution is not None else {}

    @property
    def taken(self) -> Int[Array, ""]:
        """Batches that have moved the parameters: those seen and not skipped."""
        return self.step - self.skipped

    @property
    def scored_params(self) -> Any:
        """The parameters that predict: the moving average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


@dataclass(frozen=True)
class NNXApply:
    """The forward pass of a Flax NNX module as a pure function of its arrays.

    Attributes:
        graphdef: the module without its arrays.
        takes_resolution: whether the module is told the ground size of a pixel.
        several_thresholds: whether it answers several thresholds of a tile in one pass.
    """

    graphdef: nnx.GraphDef[nnx.Module]
    takes_resolution: bool = False
    several_thresholds: bool = False

    def __call__(
        self,
        params: Any,
        model_state: Any,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"] | Float[Array, "batch thresholds"] | None,
        rngs: nnx.Rngs | None = None,
        train: bool = False,
        **options: Any,
    ) -> tuple[Float[Array, "batch height width thresholds"], Any]:
        """Logits, and the model state after the pass."""
        model: Any = nnx.merge(self.graphdef, params, model_state)
        logits = model(dsm, threshold, rngs=rngs, train=train, **options)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def create_state(
    model: nnx.Module, config: Config, *, loss_fn: Loss | None = None, optimizer: Optimizer | None = None
) -> TrainState:
    """Take a module apart into the state that `train` carries on.

    The module itself stays as it is.

    Args:
        model: called as ``model(dsm, threshold, rngs=None, train=False) -> logits``.
        config: the settings, with the seed.
        loss_fn: the loss that `train` will get, if not the configured one.
        optimizer: the optimizer that `train` will get, if not the configured one.
    """
    graphdef, params, model_state = nnx.split(model, nnx.Param, ...)
    params, model_state = (nnx.to_pure_dict(part) for part in (params, model_state))
    return init_state(
        NNXApply(
            graphdef,
            takes(type(model).__call__, "resolution"),
            getattr(model, "several_thresholds", False),
        ),
        params,
        config,
        model_state=model_state,
        loss_fn=loss_fn,
        optimizer=optimizer,
    )


def init_state(
    apply: Apply,
    params: Any,
    config: Config,
    *,
    model_state: Any = None,
    loss_fn: Loss | None = None,
    optimizer: Optimizer | None = None,
) -> TrainState:
    """The state at the start of a training of any pure forward pass: Linen, Equinox or your own.

    Args:
        apply: a hashable pure function (see `Apply`).
        params: pytree of what is trained.
        config: the settings, with the seed.
        model_state: pytree of what the forward pass changes.
        loss_fn: the loss that `train` will get, if not the configured one.
        optimizer: the optimizer that `train` will get, if not the configured one.
    """
    # Copies: the step gives its buffers away, and the caller keeps theirs.
    params, model_state = _copied((params, model_state))
    loss: Any = loss_fn or create_loss_function(config)
    loss_params = loss.init() if getattr(loss, "learns", False) else None
    plateau = create_plateau(config)
    # The optimizer's state has the same leaves for every schedule.
    transformation = make_optimizer(config, lambda step: config.learning_rate, optimizer)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=transformation.init(params if loss_params is None else (params, loss_params)),
        rng=jax.random.key(config.seed),
        apply=apply,
        loss_params=loss_params,
        ema_params=_copied(params) if config.ema_decay else None,
        plateau=plateau.init() if plateau else None,
    )


@jax.jit
def _copied(tree: Any) -> Any:
    """Copies with types of their own: a weak one (of a Python number) would make steps compile twice."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype), tree)
