"""Whether a network is asked for what it was trained on."""

import logging
from collections.abc import Sequence

from forestgaps_jax.config import Config
from forestgaps_jax.data.geotiff import open_heights
from forestgaps_jax.models.registry import REGRESSION_LOSSES

_FAR = 1.5
"""Factor from which another pixel size is another scale of trees."""


def trained_thresholds(config: Config) -> tuple[float, float]:
    """Lowest and highest canopy height (m) that a training asked for."""
    return config.threshold_range or (min(config.thresholds), max(config.thresholds))


def trained_pixels(config: Config) -> tuple[float, float] | None:
    """Finest and coarsest pixel (m) of a training; None where its rasters are not here any more.

    >>> trained_pixels(Config(virtual_resolution=(0.5, 2.0)))
    (0.5, 2.0)
    """
    rasters = [*config.dsm, *config.chm_only]
    sizes = [] if rasters and not config.virtual_share else [*config.virtual_resolution]
    for path in rasters:
        try:
            with open_heights(path) as file:
                sizes.append(file.pixel)
        except (OSError, ValueError):
            return None
    return min(sizes) * config.augment_resolution, max(sizes)


def warn_of_unfamiliar(config: Config, thresholds: Sequence[float], resolution: float) -> None:
    """Log a warning for each threshold and for a pixel size that the training never saw."""
    log = logging.getLogger(__name__)
    low, high = trained_thresholds(config)
    if far := [t for t in thresholds if not low <= t <= high]:
        named = ", ".join(f"{t:g}" for t in far)
        log.warning("%s m: trained from %g to %g m; beyond, the map is a guess", named, low, high)
    pixels = trained_pixels(config)
    if pixels and not pixels[0] / _FAR <= resolution <= pixels[1] * _FAR:
        span = " to ".join(f"{size:g}" for size in sorted(set(pixels)))
        log.warning(
            "pixels of %g m: trained on %s m, where trees are of another size in pixels; resample the DSM "
            "(gdalwarp -tr) or train on such pixels", resolution, span
        )  # fmt: skip
    if config.loss_type in REGRESSION_LOSSES:
        log.warning(
            "this network predicts heights: its probabilities only say on which side of the threshold "
            "a height lies (0.5 is at it), not how surely"
        )
