"""All that training changes, as one pytree."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from forestgaps_jax.config import Config
from forestgaps_jax.optimization import create_optimizer
from forestgaps_jax.types import pytree_dataclass

Apply = Callable[..., tuple[Float[Array, "batch height width 1"], Any]]
"""``apply(params, model_state, dsm, threshold, rngs=None, train=False) -> (logits, model_state)``."""


@pytree_dataclass
class TrainState:
    """A training's whole state: save it and nothing is lost.

    A model of another library fits by giving its own ``apply``.

    Attributes:
        step: optimizer steps taken.
        params: what is trained.
        model_state: what the forward pass changes: running statistics.
        opt_state: state of the optimizer and its schedule.
        rng: key that every random draw is folded from, by step.
        apply: the forward pass, a hashable pure function (see `Apply`).
        loss_params: what a loss learns, such as the weights of its parts; None for a loss that learns nothing.
        ema_params: moving average of the parameters; None without.
        plateau: state of a learning rate that follows a metric; None for other schedules.
    """

    step: Int[Array, ""]
    params: Any
    model_state: Any
    opt_state: Any
    rng: PRNGKeyArray
    apply: Apply = field(metadata={"static": True})
    loss_params: Any = None
    ema_params: Any = None
    plateau: Any = None

    @property
    def trained(self) -> Any:
        """What the optimizer moves: the parameters, paired with those of the loss where it has some."""
        return self.params if self.loss_params is None else (self.params, self.loss_params)

    @property
    def scored_params(self) -> Any:
        """The parameters that predict: the moving average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


@dataclass(frozen=True)
class NNXApply:
    """The forward pass of a Flax NNX module as a pure function of its arrays."""

    graphdef: nnx.GraphDef[nnx.Module]

    def __call__(
        self,
        params: Any,
        model_state: Any,
        dsm: Float[Array, "batch height width 1"],
        threshold: Float[Array, " batch"],
        rngs: nnx.Rngs | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch height width 1"], Any]:
        """Logits, and the model state after the pass."""
        model = nnx.merge(self.graphdef, params, model_state)
        logits = model(dsm, threshold, rngs=rngs, train=train)  # type: ignore[operator]
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def create_state(model: nnx.Module, config: Config) -> TrainState:
    """Take a module apart into the state that `train` carries on.

    The module itself stays as it is.

    Args:
        model: called as ``model(dsm, threshold, rngs=None, train=False) -> logits``.
        config: the optimizer's settings, and the seed.
    """
    graphdef, params, model_state = nnx.split(model, nnx.Param, ...)
    # Copies: the step gives its buffers away, and the module keeps its own.
    params, model_state = (jax.tree.map(jnp.copy, nnx.to_pure_dict(part)) for part in (params, model_state))
    # The optimizer's state has the same leaves for every schedule.
    optimizer = create_optimizer(config, lambda step: config.learning_rate)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        rng=jax.random.key(config.seed),
        apply=NNXApply(graphdef),
    )
