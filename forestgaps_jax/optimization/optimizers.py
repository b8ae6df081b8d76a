"""From the configuration to a gradient transformation."""

from typing import Any

import jax
import optax

from forestgaps_jax.config import Config


def kernel_mask(params: Any) -> Any:
    """True for the leaves that weight decay acts on: kernels, which have two dimensions or more.

    Biases, and the scales and shifts of the normalisation, have one.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def create_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, then the optimizer that ``config.optimizer`` names, then decay, then the learning rate.

    Weight decay is decoupled in every optimizer: it never passes through the moments or the momentum.

    Args:
        config: ``optimizer`` and what belongs to it.
        schedule: learning rate by optimizer step, as `create_scheduler` gives it.

    Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """
    if config.optimizer == "sgd":
        direction = optax.trace(config.momentum, config.nesterov)
    else:
        direction = optax.scale_by_adam(*config.adam_betas)
    return optax.chain(
        *_clipping(config),
        direction,
        optax.add_decayed_weights(config.weight_decay, kernel_mask),
        optax.scale_by_learning_rate(schedule),
    )


def _clipping(config: Config) -> list[optax.GradientTransformation]:
    if not config.use_gradient_clipping:
        return []
    return [
        optax.clip_by_global_norm(config.clip_value) if config.clip_norm else optax.clip(config.clip_value)
    ]
