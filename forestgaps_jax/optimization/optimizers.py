"""From the configuration to a gradient transformation."""

from typing import Any

import jax
import optax

from forestgaps_jax.config import Config
from forestgaps_jax.optimization.clipping import GradientClipping


def kernel_mask(params: Any) -> Any:
    """True for the leaves that weight decay acts on: kernels, which have two dimensions or more.

    Scales and shifts of the normalisation have one, and so have most biases: what is called ``bias`` or
    ``scale`` is left out whatever its shape, as attention has a bias of two.
    """

    def is_kernel(path: tuple[Any, ...], leaf: Any) -> bool:
        return leaf.ndim > 1 and not _names(path) & {"bias", "scale"}

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def create_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, then the optimizer that ``config.optimizer`` names, then decay, then the learning rate.

    Weight decay is decoupled in every optimizer: it never passes through the moments or the momentum.
    With ``gradient_accumulation_steps = k`` it moves the weights at every k-th batch by the mean of the k
    gradients, and by nothing at the others; fewer than k batches left at the end of a run move nothing.
    The structure of its state is the same for every schedule.

    Args:
        config: ``optimizer`` and what belongs to it.
        schedule: learning rate by optimizer step, as `create_scheduler` gives it.

    Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv:1711.05101.

    >>> optimizer = create_optimizer(Config(optimizer="sgd"), lambda step: 0.1)
    """
    if config.optimizer == "sgd":
        direction = optax.trace(config.momentum, config.nesterov)
    else:
        direction = optax.scale_by_adam(*config.adam_betas)
    decay = optax.add_decayed_weights(config.weight_decay, kernel_mask)
    return clip_and_accumulate(config, optax.chain(direction, decay, optax.scale_by_learning_rate(schedule)))


def clip_and_accumulate(
    config: Config, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Put the clipping of ``config`` before an optimizer, and its accumulation of gradients around both."""
    chain = optax.chain(*_clipping(config), optimizer)
    if config.gradient_accumulation_steps == 1:
        return chain
    return optax.MultiSteps(chain, config.gradient_accumulation_steps).gradient_transformation()


def _clipping(config: Config) -> list[optax.GradientTransformation]:
    if not config.use_gradient_clipping:
        return []
    return [GradientClipping(config.clip_value, config.clip_norm).transform()]


def _names(path: tuple[Any, ...]) -> set[str]:
    """What a leaf is called; the arrays of nnx variables are called ``value`` in them."""
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    return set(names[-2:] if names[-1:] == ["value"] else names[-1:])
