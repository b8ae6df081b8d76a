"""Pictures of sites and tiles."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Num, Shaped

from forestgaps_jax.figures.canvas import hide_ticks, new_figure
from forestgaps_jax.types import Site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR_COLOURS = {
    "right: gap": "#2a9d8f",
    "right: canopy": "#e9ecef",
    "false gap": "#e76f51",
    "missed gap": "#264653",
}
GAP_COLOURS = "YlGn_r"
_CUT = 0.5  # probability above which gap is predicted
_RELIEF = 0.35  # canopy is so rough that true relief is black and white


def hillshade(
    dsm: Float[np.ndarray, "height width"], resolution: float = 1.0
) -> Float[np.ndarray, "height width"]:
    """Light from the north-west on a surface, 0 (dark) to 1; NaN where the surface is not known.

    Args:
        dsm: heights, metres; NaN where not known.
        resolution: pixel size, metres.
    """
    south, east = (_RELIEF * slope for slope in np.gradient(dsm.astype(float), resolution))
    azimuth, altitude = np.radians(315.0), np.radians(45.0)
    # Light direction (east, north, up) against the normal (-east slope, -north slope, 1).
    light = np.array([np.sin(azimuth), np.cos(azimuth), np.tan(altitude)])
    light /= np.linalg.norm(light)
    shade = (-east * light[0] + south * light[1] + light[2]) / np.sqrt(1.0 + east**2 + south**2)
    return np.where(np.isfinite(dsm), np.clip(shade, 0.0, 1.0), np.nan)


def plot_sites(sites: Sequence[Site], threshold: float) -> "Figure":
    """A column for each site: hillshade of the surface, canopy height, gaps below a threshold (m)."""
    figure = new_figure(2.9 * len(sites), 8.4)
    axes = figure.subplots(3, len(sites), squeeze=False)
    tallest = max(float(np.nanquantile(site.chm, 0.99)) for site in sites)
    for site, (shade, height, gaps) in zip(sites, axes.T, strict=True):
        shade.imshow(hillshade(site.dsm, site.grid.resolution), cmap="gray", vmin=0, vmax=1)
        shade.set_title(site.name, fontsize=10)
        height.imshow(site.chm, cmap="viridis", vmin=0, vmax=tallest)
        gap = np.where(site.valid, site.chm < threshold, np.nan)
        gaps.imshow(gap, cmap=GAP_COLOURS, vmin=0, vmax=1, interpolation="nearest")
    labels = ("surface (hillshade)", "canopy height (m)", f"gaps below {threshold:g} m")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    figure.colorbar(axes[1, 0].images[0], ax=list(axes[1]), fraction=0.05)
    hide_ticks(axes)
    return figure


def plot_tiles(
    dsm: Num[np.ndarray, "tiles height width"],
    truth: Shaped[np.ndarray, "tiles height width"],
    probability: Shaped[np.ndarray, "tiles height width"],
    threshold: Sequence[float],
    valid: Shaped[np.ndarray, "tiles height width"] | None = None,
    resolution: float = 1.0,
) -> "Figure":
    """A row for each tile: hillshade of the surface, true gaps, predicted probability or gaps, errors.

    Args:
        dsm: surface heights, metres.
        truth: 1 where there is gap.
        probability: predicted probability of gap; or booleans, the predicted gaps, of a network that gives
            no probability.
        threshold: height threshold of each tile, metres.
        valid: pixels that count; None for all.
        resolution: pixel size, metres.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    count, size, decided = len(dsm), 2.6, probability.dtype == bool
    figure = new_figure(4 * size, count * size + 0.6)
    axes = figure.subplots(count, 4, squeeze=False)
    for row, axis in enumerate(axes):
        known = np.isfinite(dsm[row]) if valid is None else valid[row].astype(bool)
        shown = [np.where(known, image, np.nan) for image in (truth[row], probability[row])]
        axis[0].imshow(hillshade(dsm[row], resolution), cmap="gray", vmin=0, vmax=1)
        axis[1].imshow(shown[0], cmap=GAP_COLOURS, vmin=0, vmax=1)
        image = axis[2].imshow(shown[1], cmap=GAP_COLOURS if decided else "viridis", vmin=0, vmax=1)
        found, gap = probability[row] > _CUT, truth[row] > _CUT
        error = np.select([found & gap, ~found & ~gap, found & ~gap], [0.0, 1.0, 2.0], 3.0)
        axis[3].imshow(
            np.where(known, error, np.nan),
            cmap=ListedColormap(list(ERROR_COLOURS.values())),
            vmin=-0.5,
            vmax=3.5,
        )
        axis[0].set_ylabel(f"below {threshold[row]:g} m")
        if not decided:
            figure.colorbar(image, ax=axis[2], fraction=0.05)
    titles = ("surface (hillshade)", "true gaps", "predicted gaps" if decided else "P(gap)", "errors")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    hide_ticks(axes)
    patches = [Patch(color=colour, label=name) for name, colour in ERROR_COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
