"""A whole map in one picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from forestgaps_jax.figures.canvas import hide_ticks, new_figure
from forestgaps_jax.figures.maps import hillshade

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LONG = 9.0  # inches, the longer side of a panel
_FLAT = math.sqrt(0.5)  # hillshade of a plane


def plot_gap_map(
    dsm: Float[np.ndarray, "height width"],
    gaps: Float[np.ndarray, "thresholds height width"],
    thresholds: Sequence[float],
    resolution: float = 1.0,
) -> "Figure":
    """The surface, and beside it (below it, where it is wide) the gaps of all thresholds on it.

    A pixel has the colour of the lowest threshold at which it is gap.

    Args:
        dsm: surface heights, metres; NaN where not known.
        gaps: share of each pixel that is gap, NaN where not known.
        thresholds: canopy heights, metres, in any order.
        resolution: pixel size, metres.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from matplotlib.patches import Patch

    wide = dsm.shape[1] > dsm.shape[0]
    height, width = (max(2.6, _LONG * side / max(dsm.shape)) for side in dsm.shape)
    figure = new_figure(width, 2 * height + 1.0) if wide else new_figure(2 * width + 0.2, height + 0.9)
    axes = figure.subplots(2 if wide else 1, 1 if wide else 2)
    colours = [to_hex(c) for c in colormaps["inferno"](np.linspace(0.35, 0.9, len(thresholds)))]
    order = np.argsort(thresholds)
    surface = _surface(dsm, resolution)
    painted, known = surface.copy(), np.isfinite(dsm)
    for index, colour in reversed(list(zip(order, colours, strict=True))):
        _paint(painted, surface, gaps[index] >= 0.5, colour)
    for axis, image, title in zip(axes, (surface, painted), ("surface (hillshade)", "gaps"), strict=True):
        axis.imshow(image, interpolation="antialiased")
        axis.set_title(title, fontsize=10)
    hide_ticks(axes)
    _add_scale_bar(axes[0], dsm.shape[1], resolution)
    shares = [float(gaps[index][known].mean()) if known.any() else math.nan for index in order]
    labels = [f"below {thresholds[i]:g} m: {share:.1%}" for i, share in zip(order, shares, strict=True)]
    patches = [Patch(color=colour, label=label) for colour, label in zip(colours, labels, strict=True)]
    columns = min(len(patches), 4 if figure.get_figwidth() > 7 else 2)
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _surface(dsm: np.ndarray, resolution: float) -> np.ndarray:
    """Grey ``[height, width, 3]``, white where not known."""
    flat = np.where(np.isfinite(dsm), _FLAT, np.nan)
    shade = hillshade(dsm, resolution) if min(dsm.shape) > 1 else flat
    # Beside what is not known there is no slope.
    shade = np.where(np.isnan(shade), flat, shade)
    return np.repeat(np.nan_to_num(shade, nan=1.0)[..., None], 3, axis=2)


def _paint(image: np.ndarray, surface: np.ndarray, where: np.ndarray, colour: str) -> None:
    """Colour pixels, the relief still to be seen."""
    from matplotlib.colors import to_rgb

    image[where] = to_rgb(colour) * (0.55 + 0.45 * surface[where])


def _add_scale_bar(axis: "Axes", pixels: int, resolution: float) -> None:
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    wanted = pixels * resolution / 4
    power = 10.0 ** math.floor(math.log10(wanted))
    metres = power * max(step for step in (1, 2, 5) if step * power <= wanted)
    label = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    bar = AnchoredSizeBar(axis.transData, metres / resolution, label, "lower right", borderpad=0.6, sep=3)
    bar.patch.set(alpha=0.8, linewidth=0)
    axis.add_artist(bar)
