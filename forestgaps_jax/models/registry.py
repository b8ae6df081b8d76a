"""Networks by name."""

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

from forestgaps_jax.config import Config
from forestgaps_jax.models.canopy_height import DistributionUNet, RegressionUNet
from forestgaps_jax.models.deeplab import DeepLabV3Plus
from forestgaps_jax.models.ground import GroundUNet
from forestgaps_jax.models.unet import UNet

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "unet": partial(UNet, film=False),
    "unet_film": partial(UNet, film=True),
    "unet_residual": partial(UNet, film=True, block="residual"),
    "unet_attention": partial(UNet, film=True, attention=True),
    "unet_all_features": partial(UNet, film=True, block="residual", cbam=True),
    "unet_regression": RegressionUNet,
    "unet_distribution": DistributionUNet,
    "unet_ground": GroundUNet,
    "deeplabv3_plus": partial(DeepLabV3Plus, film=False),
    "deeplabv3_plus_film": partial(DeepLabV3Plus, film=True),
}
"""What `create_model` can make; add an entry to make more."""

_ELSEWHERE = {
    "film_unet": "unet_film",
    "residual_unet": "unet_residual",
    "attention_unet": "unet_attention",
    "regression_unet": "unet_regression",
    "deeplab": "deeplabv3_plus",
    "deeplab_film": "deeplabv3_plus_film",
}
"""Names of other places, in lower case, and those of `MODELS`."""

REGRESSION_LOSSES = ("mse", "mae", "huber", "combined_regression")
"""Values of ``loss_type`` that compare heights, which only unet_regression predicts."""


def create_model(name: str, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """Make a network: ``model(dsm, threshold=None, rngs=None, train=False, drop_path_rate=None) -> logits``.

    Args:
        name: a key of `MODELS`.
        rngs: the ``params`` stream initialises the weights.
        options: arguments of the network, such as ``features`` and ``depth`` of `UNet`.

    Raises:
        ValueError: no network of this name (the error lists them), or a size that none can have.
        TypeError: the network has no such option.

    >>> model = create_model("unet_film", rngs=nnx.Rngs(0), features=4, depth=2)
    """
    if name not in MODELS:
        meant = _nearest(name)
        hint = f"did you mean {meant!r}? " if meant else ""
        raise ValueError(f"there is no model {name!r}; {hint}there are: {', '.join(sorted(MODELS))}")
    for option, least in (("features", 1), ("depth", 0)):
        if options.get(option, least) < least:
            raise ValueError(f"{option} = {options[option]}: must be {least} or more")
    return MODELS[name](rngs=rngs, **options)


def _nearest(name: str) -> str | None:
    plain = re.sub("[^a-z0-9]+", "_", name.lower().replace("+", "plus"))
    if plain.startswith("deeplab"):
        plain = "deeplab_film" if re.search("film|threshold", plain) else "deeplab"
    close = difflib.get_close_matches(plain, MODELS, n=1)
    return _ELSEWHERE.get(plain, close[0] if close else None)


def create_model_from_config(config: Config) -> nnx.Module:
    """The network that ``config`` describes, initialised from ``config.seed``.

    Raises:
        ValueError: no network of this name, or one that predicts no heights for a loss on heights, or whose
            stride does not fit the tiles.
    """
    if config.loss_type in REGRESSION_LOSSES and config.model_name != "unet_regression":
        raise ValueError(
            f"loss_type = {config.loss_type!r} compares canopy heights, which model_name = "
            f"{config.model_name!r} does not predict: choose model_name = 'unet_regression' or another loss"
        )
    model = create_model(
        config.model_name,
        rngs=nnx.Rngs(config.seed),
        features=config.features,
        depth=config.depth,
        norm=config.norm,
        batch_size=config.batch_size,
        dropout=config.dropout,
        drop_path_rate=config.droppath_final_prob if config.use_droppath else 0.0,
        height_scale=config.height_scale,
        detrend=config.detrend,
        opening_windows=config.opening_windows,
        precision=config.precision,
        remat=config.remat,
        spectral_norm=config.spectral_norm,
        batch_norm_parts=config.batch_norm_parts,
    )
    stride = getattr(model, "stride", 1)
    if config.tile_size % stride:
        raise ValueError(
            f"tile_size = {config.tile_size} does not fit model_name = {config.model_name!r} with depth = "
            f"{config.depth}: must be a multiple of {stride}"
        )
    return model
