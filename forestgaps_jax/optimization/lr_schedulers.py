"""Learning rate by optimizer step."""

import optax

from forestgaps_jax.config import Config


def create_scheduler(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The schedule that ``config.scheduler_type`` names, over the whole run.

    It counts optimizer steps, and stays at ``min_lr`` after the last of
    ``config.epochs * steps_per_epoch``.

    Args:
        config: the ``scheduler_type`` and what belongs to it.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        ValueError: fewer than one step in an epoch.

    Source: Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983.

    >>> schedule = create_scheduler(Config(epochs=2, learning_rate=0.1, min_lr=0.0), 10)
    >>> [round(float(schedule(step)), 3) for step in (0, 10, 20, 99)]
    [0.1, 0.05, 0.0, 0.0]
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch = {steps_per_epoch}: must be 1 or more")
    total = config.epochs * steps_per_epoch
    warmup = 0
    if config.scheduler_type == "cosine_warm":
        warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    annealing = optax.cosine_decay_schedule(
        config.learning_rate, max(total - warmup, 1), alpha=config.min_lr / config.learning_rate
    )
    if not warmup:
        return annealing
    rise = optax.linear_schedule(config.warmup_start_lr, config.learning_rate, warmup)
    return optax.join_schedules([rise, annealing], [warmup])
