"""What a compiled training step is made of: a loss, an optimizer, and their schedules."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optax

from forestgaps_jax.config import Config
from forestgaps_jax.loss import (
    Loss,
    create_loss_function,
    join_weights,
    split_weights,
    weigh_by_threshold,
)
from forestgaps_jax.optimization import (
    clip_and_accumulate,
    create_optimizer,
    create_scheduler,
    drop_path_schedule,
)
from forestgaps_jax.types import Listed

Optimizer = optax.GradientTransformation | Callable[[optax.Schedule], optax.GradientTransformation]
"""A transformation with its learning rate inside, or what makes one from a schedule, such as `optax.lion`."""

_OUTSIDE_THE_STEP = {"name", "runs_dir", "seed", "dsm", "chm", "batch_size", "augment", "threshold_range"}
_OUTSIDE_THE_STEP |= {"thresholds_per_tile"}
_OUTSIDE_THE_STEP |= {"tile_size", "tile_overlap", "block_size", "min_valid_fraction", "split_buffer"}
_OUTSIDE_THE_STEP |= {"val_fraction", "test_fraction", "figure_tiles", "gap_scores", "boundary_tolerance"}
_OUTSIDE_THE_STEP |= {"virtual_sites", "virtual_size", "virtual_resolution", "virtual_slope"}
_OUTSIDE_THE_STEP |= {"virtual_closure", "virtual_height", "virtual_share", "chm_only", "site_weights"}
_OUTSIDE_THE_STEP |= {"sites", "site_names", "stream", "memory_share", "shard_rasters"}
_OUTSIDE_THE_STEP |= {"augment_tilt", "augment_relief", "augment_ridges", "augment_height"}
_OUTSIDE_THE_STEP |= {"augment_resolution", "augment_smoothing", "augment_blur", "augment_pits"}
_OUTSIDE_THE_STEP |= {"augment_noise", "augment_missing"}
_OUTSIDE_THE_STEP |= {"model_name", "features", "depth", "norm", "dropout", "spectral_norm", "precision"}
_OUTSIDE_THE_STEP |= {"remat", "height_scale", "detrend", "opening_windows"}
_OUTSIDE_THE_STEP |= {"use_threshold_weights", "threshold_weight_adjustment"}
_OUTSIDE_THE_STEP |= {"use_progress_bar", "use_tensorboard", "vis_save_frequency", "profile_steps"}
_OUTSIDE_THE_STEP |= {"compilation_cache_dir", "devices", "fsdp", "batch_norm_parts"}
_OUTSIDE_THE_STEP |= {"monitor_metric", "monitor_mode", "save_frequency", "save_minutes", "max_to_keep"}
_OUTSIDE_THE_STEP |= {"use_early_stopping", "early_stopping_monitor", "early_stopping_mode"}
_OUTSIDE_THE_STEP |= {"early_stopping_patience", "early_stopping_min_delta", "early_stopping_restore_best"}
_OUTSIDE_THE_STEP |= {"plateau_mode", "plateau_factor", "plateau_patience", "plateau_threshold"}
_OUTSIDE_THE_STEP |= {"plateau_threshold_mode", "plateau_cooldown"}
"""Settings that no loss, optimizer or schedule reads, or that act between the steps."""

_LOSS = {"loss_type", "loss_alpha", "focal_alpha", "focal_gamma", "dice_smooth", "dice_reduction"}
_LOSS |= {"label_smoothing", "combo_weights", "adaptive_weights", "huber_delta"}
_LOSS |= {"use_focal", "use_dice", "use_bce", "thresholds"}
"""Settings that are in the loss and the thresholds of a plan already."""


_ARGUMENTS = ("learning_rate", "min_lr", "warmup_start_lr", "max_lr", "weight_decay")
_ARGUMENTS += ("droppath_start_prob", "droppath_final_prob")
"""Settings that a compiled step takes as arguments, so that it serves all of their values."""

Numbers = dict[str, Any]
"""What a compiled step takes as arguments: ``settings`` and ``loss`` by name, ``thresholds``; a pytree."""


@dataclass(frozen=True)
class Recipe:
    """The parts of a training step.

    Attributes:
        loss: what is minimised in training.
        score_loss: the loss that validation and tests report: without threshold weights.
        optimizer: from gradients to updates.
        learning_rate: by optimizer step, as it is recorded; None where only the optimizer knows it.
        thresholds: listed canopy heights, metres.
        drop_path_rate: by batch; None for a network's own.
        accumulation: batches for one optimizer step.
        ema_decay: of the weights' moving average; 0 for none.
        monitor_gradients: whether an epoch's gradient norms are recorded.
        max_skipped_steps: in a row, after which no step changes anything any more.
        plan: what makes the recipe of its numbers; recipes with equal plans share one compiled step.
        numbers: learning rates, weight decay, rates of stochastic depth, weights in the loss, thresholds.
    """

    loss: Loss
    score_loss: Loss
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule | None
    thresholds: Listed
    drop_path_rate: optax.Schedule | None
    accumulation: int
    ema_decay: float
    monitor_gradients: bool
    max_skipped_steps: int
    plan: "Plan"
    numbers: Numbers


@dataclass(frozen=True)
class Plan:
    """A recipe without its numbers; it can be hashed.

    Attributes:
        settings: those that the step reads, but for its numbers.
        steps_per_epoch: training batches in an epoch.
        loss: without its weights.
        optimizer: instead of the configured one.
        scheduler: instead of the configured one.
    """

    settings: tuple[tuple[str, Any], ...]
    steps_per_epoch: int
    loss: Loss
    optimizer: Optimizer | None
    scheduler: optax.Schedule | None

    def recipe(self, numbers: Numbers) -> Recipe:
        """The recipe with these numbers, which may be arrays of a function that is being compiled."""
        config = Config(**dict(self.settings))
        for name, value in numbers["settings"].items():
            object.__setattr__(config, name, value)  # without a check: it may be no plain number
        rate = self.scheduler or create_scheduler(config, self.steps_per_epoch)
        loss = join_weights(self.loss, numbers["loss"])
        drop_path = drop_path_schedule(config, self.steps_per_epoch) if config.use_droppath else None
        return Recipe(
            loss=loss,
            score_loss=loss,
            optimizer=make_optimizer(config, rate, self.optimizer),
            learning_rate=None if isinstance(self.optimizer, optax.GradientTransformation) else rate,
            thresholds=numbers["thresholds"],
            drop_path_rate=drop_path,
            accumulation=config.gradient_accumulation_steps,
            ema_decay=config.ema_decay,
            monitor_gradients=config.monitor_gradients,
            max_skipped_steps=config.max_skipped_steps,
            plan=self,
            numbers=numbers,
        )


def make_recipe(
    config: Config,
    steps_per_epoch: int,
    *,
    loss_fn: Loss | None = None,
    optimizer: Optimizer | None = None,
    scheduler: optax.Schedule | None = None,
    threshold_weights: Mapping[float, float] | None = None,
) -> Recipe:
    """Put the recipe of ``config`` together.

    Args:
        config: the settings.
        steps_per_epoch: training batches in an epoch.
        loss_fn: a loss to take instead of the configured one.
        optimizer: an optimizer to take instead of the configured one.
        scheduler: learning rate by optimizer step, instead of the configured one.
        threshold_weights: factors by threshold (m) on the loss in training.

    Raises:
        TypeError: a loss that cannot leave out pixels, or one that cannot be hashed.
        ValueError: a loss of probabilities, or one that has threshold weights of its own besides; a schedule
            beside an optimizer that cannot follow it.
    """
    if loss_fn is not None:
        check_loss(loss_fn)
    if isinstance(optimizer, optax.GradientTransformation) and scheduler is not None:
        raise ValueError(
            "the optimizer given has its learning rate inside and cannot follow the scheduler: give what "
            "makes an optimizer from a schedule, such as optax.adamw, instead of optax.adamw(...)"
        )
    plain = loss_fn or create_loss_function(config)
    loss = plain if threshold_weights is None else weigh_by_threshold(plain, threshold_weights)
    loss, weights = split_weights(loss)
    numbers = {name: value for name in _ARGUMENTS if (value := getattr(config, name)) is not None}
    apart = _OUTSIDE_THE_STEP | _LOSS | numbers.keys()
    settings = tuple((name, value) for name, value in config.to_dict().items() if name not in apart)
    plan = Plan(settings, steps_per_epoch, loss, optimizer, scheduler)
    recipe = plan.recipe({"settings": numbers, "loss": weights, "thresholds": config.thresholds})
    return replace(recipe, score_loss=plain)


def make_optimizer(
    config: Config, schedule: optax.Schedule, optimizer: Optimizer | None = None
) -> optax.GradientTransformation:
    """The optimizer of ``config``; or the given one, with the clipping and accumulation of ``config``."""
    if optimizer is None:
        return create_optimizer(config, schedule)
    ready = isinstance(optimizer, optax.GradientTransformation)
    return clip_and_accumulate(config, optimizer if ready else optimizer(schedule))


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function can be called with an argument of this name."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


def check_loss(loss: Any) -> None:
    """Refuse a loss that the steps cannot use.

    Raises:
        TypeError: it cannot leave out pixels, or cannot be hashed.
        ValueError: it takes probabilities, where networks give logits.
    """
    if not takes(loss, "valid"):
        raise TypeError(
            f"loss_fn {loss} takes no valid=: it must be called as loss(logits, targets, *, valid, "
            "sample_weight=None), so that pixels without data stay out; see forestgaps_jax.loss"
        )
    if not getattr(getattr(loss, "loss", loss), "from_logits", True):
        raise ValueError(f"loss_fn {loss} takes probabilities: networks give logits, set from_logits=True")
    try:
        hash(loss)
    except TypeError:
        raise TypeError(
            f"loss_fn {loss} cannot be hashed: make it a function or a frozen dataclass"
        ) from None
