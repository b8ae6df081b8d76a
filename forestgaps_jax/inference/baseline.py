"""What needs no training: canopy height as the surface above its own grey opening."""

import numpy as np
from jaxtyping import Float32
from scipy import ndimage


def opening_baseline(
    dsm: Float32[np.ndarray, "height width"],
    resolution: float,
    window: float = 41.0,
    smoothing: float = 5.0,
) -> Float32[np.ndarray, "height width"]:
    """Estimate canopy height from a surface alone, by mathematical morphology.

    The lowest surface within the window, opened and smoothed, stands for the ground. Where every window
    holds a gap on gentle ground this is nearly perfect; under closed canopy, or on steep slopes, it fails.

    Args:
        dsm: surface height, metres; NaN where not known.
        resolution: pixel size, metres.
        window: side of the square window, metres.
        smoothing: standard deviation of the Gaussian over the opened surface, metres.

    Returns:
        Height above that ground, metres; NaN where the surface is not known. Gap is where it is below a
        threshold.

    Source: Zhang et al. 2003, A progressive morphological filter for removing nonground measurements from
    airborne LIDAR data, doi:10.1109/TGRS.2003.810682, with one window.

    >>> dsm = np.full((60, 60), 300.0, np.float32)
    >>> dsm[20:30, 20:30] += 15.0
    >>> float(opening_baseline(dsm, 1.0)[25, 25])
    15.0
    """
    known = np.isfinite(dsm)
    size = 2 * _half(window, resolution) + 1
    lowest = ndimage.minimum_filter(np.where(known, dsm, np.inf), size, mode="nearest")
    ground = ndimage.maximum_filter(np.where(np.isfinite(lowest), lowest, -np.inf), size, mode="nearest")
    reached = np.isfinite(ground)
    weight = ndimage.gaussian_filter(reached.astype(np.float32), smoothing / resolution, mode="nearest")
    total = ndimage.gaussian_filter(np.where(reached, ground, 0.0), smoothing / resolution, mode="nearest")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, dsm - total / weight, np.nan).astype(np.float32)


def opening_reach(resolution: float, window: float = 41.0, smoothing: float = 5.0) -> int:
    """Pixels around a pixel that its height above the opening depends on, as `opening_baseline` takes it.

    >>> opening_reach(1.0)
    60
    """
    # Half a window to the lowest and another to the highest of these, then SciPy's four standard deviations.
    return 2 * _half(window, resolution) + int(4 * smoothing / resolution + 0.5)


def _half(window: float, resolution: float) -> int:
    return int(window / resolution / 2 + 1e-6)
