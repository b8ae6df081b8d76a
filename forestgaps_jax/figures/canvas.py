"""What all pictures share."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

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


def render(figure: "Figure") -> UInt8[np.ndarray, "height width 3"]:
    """The figure as an RGB image.

    >>> render(new_figure(2.0, 1.0)).shape
    (100, 200, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
