"""Learning rate by optimizer step."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from forestgaps_jax.config import Config
from forestgaps_jax.optimization.plateau import create_plateau


def create_scheduler(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The schedule that ``config.scheduler_type`` names, over the whole run.

    It counts optimizer steps, of which ``config.gradient_accumulation_steps = k`` batches make one: a run
    has ``ceil(epochs * steps_per_epoch / k)``, and after the last of them the rate stays what it is.
    ``step``, ``exponential`` and ``onecycle`` are those of PyTorch and know no ``min_lr``; ``exponential``
    falls at every step, not once an epoch. A cycle of ``cosine_restart`` that the run cannot finish is cut.
    The rate of ``plateau`` and ``warmup_plateau`` has to be multiplied by what `Plateau` says.

    Args:
        config: the ``scheduler_type`` and what belongs to it.
        steps_per_epoch: batches in an epoch.

    Raises:
        TypeError: the settings do not come first.
        ValueError: fewer than one batch in an epoch.

    Source: Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983; Smith and Topin 2018, Super-Convergence,
    arXiv:1708.07120.

    >>> schedule = create_scheduler(Config(epochs=2, learning_rate=0.1, min_lr=0.0), 10)
    >>> [round(float(schedule(step)), 3) for step in (0, 10, 20, 99)]
    [0.1, 0.05, 0.0, 0.0]
    """
    if not isinstance(config, Config) or not isinstance(steps_per_epoch, int | np.integer):
        raise TypeError(
            f"create_scheduler({type(config).__name__}, {type(steps_per_epoch).__name__}): must be "
            "create_scheduler(config, steps_per_epoch); the optimizer is made after it, with its schedule"
        )
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch = {steps_per_epoch}: must be 1 or more")
    total = -(-config.epochs * steps_per_epoch // config.gradient_accumulation_steps)
    if config.epochs * steps_per_epoch >= 2**31:
        raise ValueError(
            f"epochs = {config.epochs} of {steps_per_epoch} steps: must be below 2^31 steps in all"
        )
    schedule = _SHAPES[config.scheduler_type](config, steps_per_epoch, total)
    return lambda step: schedule(jnp.minimum(step, total))


def learning_rates(
    config: Config,
    steps_per_epoch: int,
    metric: Sequence[float] | Float[np.ndarray, " epochs"] | None = None,
) -> Float[np.ndarray, " epochs"]:
    """Learning rate of each epoch's last optimizer step, as a training would have it.

    Args:
        config: the schedule, and the epochs.
        steps_per_epoch: batches in an epoch.
        metric: ``monitor_metric`` after each epoch; only ``plateau`` and ``warmup_plateau`` follow it.

    Raises:
        ValueError: a schedule that follows a metric has not one value an epoch.

    >>> config = Config(scheduler_type="plateau", epochs=4, learning_rate=0.1, plateau_patience=0)
    >>> learning_rates(config, 10, metric=[0.5, 0.6, 0.6, 0.7]).round(3)
    array([0.1 , 0.1 , 0.1 , 0.01], dtype=float32)
    """
    last = (np.arange(1, config.epochs + 1) * steps_per_epoch - 1) // config.gradient_accumulation_steps
    rates = np.asarray(jax.vmap(create_scheduler(config, steps_per_epoch))(last), np.float32)
    plateau = create_plateau(config)
    if plateau is None:
        return rates
    if metric is None or len(metric) != config.epochs:
        raise ValueError(
            f"scheduler_type = {config.scheduler_type!r} follows {config.monitor_metric}: "
            f"pass metric with one value for each of the {config.epochs} epochs"
        )
    values = jnp.asarray(metric, jnp.float32)
    _, scales = jax.lax.scan(lambda s, value: (plateau.update(s, value), s.scale), plateau.init(), values)
    return rates * np.asarray(scales)


def _steps(config: Config, steps_per_epoch: int, epochs: float) -> int:
    return round(epochs * steps_per_epoch / config.gradient_accumulation_steps)


def _warmup_steps(config: Config, steps_per_epoch: int, total: int) -> int:
    """A warmup as long as the run, or longer, reaches the peak with the run's last step."""
    return min(_steps(config, steps_per_epoch, config.warmup_epochs), total - 1)


def _annealing(config: Config, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(
        config.learning_rate, max(steps, 1), alpha=config.min_lr / config.learning_rate
    )


def _cosine(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    return _annealing(config, total)


def _after_warmup(config: Config, warmup: int, schedule: optax.Schedule) -> optax.Schedule:
    if not warmup:  # a linear schedule of no length would stay at its start
        return schedule
    rise = optax.linear_schedule(config.warmup_start_lr, config.learning_rate, warmup)
    return optax.join_schedules([rise, schedule], [warmup])


def _cosine_warm(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    warmup = _warmup_steps(config, steps_per_epoch, total)
    return _after_warmup(config, warmup, _annealing(config, total - warmup))


def _cosine_restart(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    ends, length, end = [0], config.cycle_epochs, 0.0
    # A cycle that would begin with the end of the run would leave it at the peak.
    while len(ends) <= config.cycles and ends[-1] < total:
        end, length = end + length, length * config.cycle_mult
        ends.append(max(_steps(config, steps_per_epoch, end), ends[-1] + 1))
    cycles = [_annealing(config, b - a) for a, b in pairwise(ends)]
    return optax.join_schedules(cycles, ends[1:-1])


def _constant(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    return optax.constant_schedule(config.learning_rate)


def _warmup_constant(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    warmup = _warmup_steps(config, steps_per_epoch, total)
    return _after_warmup(config, warmup, _constant(config, steps_per_epoch, total))


def _step(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    # Whole numbers of batches, divided as such: in compiled float32, 41 / 41 is below 1, a step too late.
    batches = min(max(round(config.step_size * steps_per_epoch), 1), jnp.iinfo(jnp.int32).max)

    def rate(step: Any) -> Any:
        reductions = step * config.gradient_accumulation_steps // batches
        return config.learning_rate * jnp.power(config.step_gamma, reductions)

    return rate


def _exponential(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    decay = optax.exponential_decay(config.learning_rate, steps_per_epoch, config.exponential_gamma)
    return lambda step: decay(step * config.gradient_accumulation_steps)


def _onecycle(config: Config, steps_per_epoch: int, total: int) -> optax.Schedule:
    """PyTorch's: the peak is at step ``pct_start * total - 1``, the end at the last step.

    `optax.cosine_onecycle_schedule` has them a step later and cuts the first to a whole step.
    """
    peak = 10 * config.learning_rate if config.max_lr is None else config.max_lr
    first = peak / config.div_factor
    # Between two steps, which optax computes with though it asks for whole ones; below 0 in a run so short
    # that it begins on the way down.
    top: Any = config.pct_start * total - 1

    def turn(start: Any, stop: Any, steps: Any) -> optax.Schedule:
        if config.anneal_strategy == "linear":
            return optax.linear_schedule(start, stop, steps)
        return optax.cosine_decay_schedule(start, steps, alpha=stop / start)

    fall = turn(peak, first / config.final_div_factor, total - 1 - top)
    if top <= 0:
        return lambda step: fall(step - top)
    return optax.join_schedules([turn(first, peak, top), fall], [top])


_SHAPES: dict[str, Callable[[Config, int, int], optax.Schedule]] = {
    "cosine": _cosine,
    "cosine_warm": _cosine_warm,
    "cosine_restart": _cosine_restart,
    "plateau": _constant,
    "warmup_plateau": _warmup_constant,
    "step": _step,
    "onecycle": _onecycle,
    "exponential": _exponential,
    "constant": _constant,
}
