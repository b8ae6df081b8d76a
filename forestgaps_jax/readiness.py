"""What must fit together before a training starts, so that it fails at once and in words."""

import logging
from typing import Any

import jax
from flax import nnx

from forestgaps_jax.callbacks import Monitor
from forestgaps_jax.config import Config
from forestgaps_jax.loss import create_threshold_weights
from forestgaps_jax.models import RegressionUNet, model_summary
from forestgaps_jax.models.network import Network
from forestgaps_jax.optimization import create_plateau
from forestgaps_jax.recipe import Recipe, takes
from forestgaps_jax.state import NNXApply, TrainState
from forestgaps_jax.statistics import gap_shares
from forestgaps_jax.steps import predicts_heights
from forestgaps_jax.types import Data

_THE_SAME = "pass create_state the same settings, loss_fn and optimizer as train"


def check_state(state: TrainState, config: Config, recipe: Recipe) -> None:
    """Refuse a state that is not of these settings.

    Raises:
        ValueError: says which settings have to be those that the state was created with, or what the model
            cannot do.
    """
    wanted = jax.eval_shape(recipe.optimizer.init, state.trained)
    if jax.tree.structure(wanted) != jax.tree.structure(state.opt_state):
        raise ValueError(
            f"the state was created with another optimizer than optimizer = {config.optimizer!r}, "
            f"use_gradient_clipping = {config.use_gradient_clipping}, clip_norm = {config.clip_norm}, "
            f"gradient_accumulation_steps = {config.gradient_accumulation_steps}: {_THE_SAME}"
        )
    plateau, learns = create_plateau(config) is not None, getattr(recipe.loss, "learns", False)
    for part, needed, setting in (
        (state.ema_params, recipe.ema_decay > 0, f"ema_decay = {recipe.ema_decay}"),
        (state.plateau, plateau, f"scheduler_type = {config.scheduler_type!r}"),
        (state.loss_params, learns, f"loss {recipe.loss}"),
    ):
        if (part is not None) != needed:
            raise ValueError(f"the state was created with other settings than {setting}: {_THE_SAME}")
    if (model := model_of(state)) is not None:
        _check_model(model, recipe)
        _warn_of_settings_that_do_not_act(model, config)


def check_monitors(config: Config, data: Data, recipe: Recipe) -> Monitor:
    """Refuse to follow metrics that will never be measured; the monitor of ``config.monitor_metric``.

    Raises:
        ValueError: names the metric, and what could be followed instead.
    """
    validated, heights = data.val is not None, predicts_heights(recipe.loss)
    monitor = Monitor(config.monitor_metric, config.monitor_mode)
    # Without validation there is no best checkpoint, which is no reason not to train.
    monitor.check(config, validated=validated or create_plateau(config) is None, heights=heights)
    if config.use_early_stopping:
        stopper = Monitor(config.early_stopping_monitor, config.early_stopping_mode)
        stopper.check(config, validated=validated, heights=heights)
    return monitor


def threshold_weights(config: Config, data: Data) -> dict[float, float] | None:
    """Weights of the thresholds from the training data, which are read once for it; None if not asked for."""
    if not config.use_threshold_weights:
        return None
    shares = gap_shares(data.train, config.thresholds)
    weights = create_threshold_weights(config, shares)
    told = ", ".join(f"{t:g} m: {weights[t]:.2f} (gap {shares[t]:.1%})" for t in config.thresholds)
    logging.getLogger(__name__).info("threshold weights from the training data: %s", told)
    return weights


def model_of(state: TrainState) -> nnx.Module | None:
    """The module that a state was created from, with the state's arrays; None for another library's."""
    if not isinstance(state.apply, NNXApply):
        return None
    return nnx.merge(state.apply.graphdef, state.params, state.model_state)


def model_logs(state: TrainState, config: Config) -> dict[str, Any]:
    """What ``on_train_begin`` tells of the model."""
    model = model_of(state)
    if model is None:
        return {"model": None, "model_summary": ""}
    stride = getattr(model, "stride", 1)
    side = stride * -(-config.tile_size // stride)
    return {"model": model, "model_summary": model_summary(model, (1, side, side, 1))}


def _warn_of_settings_that_do_not_act(model: nnx.Module, config: Config) -> None:
    """Name the settings of networks that were changed in ``config`` and are others in the model."""
    if not isinstance(model, Network):
        return
    built = {name: getattr(model, name) for name in ("norm", "precision", "remat", "spectral_norm")}
    built["batch_norm_parts"] = model.batch_norm_parts
    built |= {"detrend": model.detrend, "opening_windows": model.opening_windows}
    built |= {"height_scale": model.height_scale, "dropout": model.dropout.rate}
    for name, value in built.items():
        wanted = getattr(config, name)
        if wanted not in (value, getattr(Config(), name)):
            logging.getLogger(__name__).warning(
                "%s = %r does not act: the model was made with %r; make it by create_model_from_config",
                name, wanted, value,
            )  # fmt: skip


def _check_model(model: nnx.Module, recipe: Recipe) -> None:
    kind = type(model).__name__
    if predicts_heights(recipe.loss) and isinstance(model, Network) and not isinstance(model, RegressionUNet):
        raise ValueError(
            f"the loss {recipe.loss} compares canopy heights, which {kind} does not predict: take the model "
            "unet_regression, or a loss of gaps"
        )
    if recipe.drop_path_rate is not None and not takes(type(model).__call__, "drop_path_rate"):
        raise ValueError(
            f"use_droppath = true, and {kind} takes no drop_path_rate: give its __call__ the argument "
            "drop_path_rate=None, or leave the setting"
        )
