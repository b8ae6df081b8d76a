"""What all pictures share."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches; it belongs to no window and no backend."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def hide_ticks(axes: np.ndarray) -> None:
    """Take the ticks off images."""
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
