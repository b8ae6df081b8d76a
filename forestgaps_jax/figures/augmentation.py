"""What augmentation makes of a tile."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from forestgaps_jax.figures.canvas import hide_ticks, new_figure
from forestgaps_jax.figures.maps import hillshade

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_SURFACE, _CANOPY, _GROUND, _GAP = "#c1121f", "#2a6f5e", "#8d6e53", "#e76f51"


class AugmentedTile(NamedTuple):
    """What the network sees of a tile, and the truth; metres, NaN where not known.

    Attributes:
        dsm: surface height.
        chm: true canopy height.
        ground: true height of the ground, known everywhere.
        resolution: side of a pixel.
    """

    dsm: Float[np.ndarray, "size size"]
    chm: Float[np.ndarray, "size size"]
    ground: Float[np.ndarray, "size size"]
    resolution: float


def plot_augmentation(tiles: Mapping[str, AugmentedTile], threshold: float) -> "Figure":
    """A panel for each tile: its surface lit from the north-west, its gaps outlined, and a profile.

    The profile runs along the tile's middle row (dashed in the panel), all on one scale: the surface that the
    network sees over true canopy and ground.

    Args:
        tiles: by their titles.
        threshold: canopy height below which there is gap, metres.

    Raises:
        ValueError: nothing to draw.

    >>> flat = AugmentedTile(*np.zeros((3, 4, 4)), resolution=1.0)
    >>> [axis.get_title() for axis in plot_augmentation({"as it is": flat}, 5.0).axes]
    ['as it is', '']
    """
    if not tiles:
        raise ValueError("there is no tile to draw")
    columns, rows = min(len(tiles), _COLUMNS), -(-len(tiles) // _COLUMNS)
    figure = new_figure(2.6 * columns, 3.5 * rows + 0.4)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.6, 1] * rows)
    reach = max(1.0, *(1.1 * float(np.nanmax(_profile(tile))) for tile in tiles.values()))
    for number, (title, tile) in enumerate(tiles.items()):
        row, column = divmod(number, columns)
        above, below = (figure.add_subplot(grid[2 * row + i, column]) for i in (0, 1))
        above.set_title(title, fontsize=10)
        _draw_tile(above, tile, threshold)
        _draw_profile(below, tile, reach)
        below.tick_params(labelleft=column == 0, labelsize=7)
        if column == 0:
            below.set_ylabel("m", fontsize=8)
    _explain(figure, threshold)
    return figure


def _profile(tile: AugmentedTile) -> np.ndarray:
    """Surface, canopy and ground along the middle row, above the middle of their range; metres."""
    row = tile.dsm.shape[0] // 2
    ground = tile.ground[row].astype(float)
    lines = np.stack([tile.dsm[row], ground + tile.chm[row], ground])
    return lines - (np.nanmax(lines) + np.nanmin(lines)) / 2


def _draw_tile(axis: "Axes", tile: AugmentedTile, threshold: float) -> None:
    # The truth stands in for what is missing, so that the light is known up to the edge of the hole.
    whole = np.where(np.isfinite(tile.dsm), tile.dsm, tile.ground + tile.chm)
    shade = np.where(np.isfinite(tile.dsm), hillshade(whole, tile.resolution), np.nan)
    axis.imshow(shade, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    gap = (tile.chm < threshold).astype(float)
    if 0 < gap.mean() < 1:
        axis.contour(gap, levels=[0.5], colors=_GAP, linewidths=0.8)
    axis.axhline(tile.dsm.shape[0] // 2, color="white", linewidth=0.8, linestyle="--")
    hide_ticks(np.array([axis]))


def _draw_profile(axis: "Axes", tile: AugmentedTile, reach: float) -> None:
    surface, canopy, ground = _profile(tile)
    along = np.arange(surface.size) * tile.resolution
    axis.fill_between(along, ground, canopy, color=_CANOPY, alpha=0.3, linewidth=0)
    axis.plot(along, ground, color=_GROUND, linewidth=1.0)
    axis.plot(along, surface, color=_SURFACE, linewidth=0.8)
    axis.set_xlim(0, along[-1])
    axis.set_ylim(-reach, reach)
    axis.spines[["top", "right"]].set_visible(False)


def _explain(figure: "Figure", threshold: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys = [
        Line2D([], [], color=_SURFACE, label="surface, as the network sees it"),
        Patch(color=_CANOPY, alpha=0.3, label="true canopy"),
        Line2D([], [], color=_GROUND, label="ground"),
        Line2D([], [], color=_GAP, label=f"outline of the true gaps below {threshold:g} m"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
