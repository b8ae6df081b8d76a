"""One small panel of lines, to stand beside others on a page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num

from forestgaps_jax.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#2a9d8f", "#e76f51", "#8a949e", "#b08bc4")
"""Told apart on white and on black."""

Points = tuple[Sequence[float] | Num[np.ndarray, " points"], Sequence[float] | Num[np.ndarray, " points"]]


def plot_lines(
    lines: Mapping[str, Points],
    *,
    title: str = "",
    width: float = 3.0,
    steps: bool = False,
    whole: bool = False,
    **axis: Any,
) -> "Figure":
    """A panel of a few lines, told apart by a legend where there is more than one.

    Args:
        lines: x and y by name; what is not finite is left out.
        title: stands above.
        width: inches.
        steps: y holds back to the x before, and points have no dots.
        whole: ticks of x are whole numbers.
        axis: what `matplotlib.axes.Axes.set` takes: xlabel, ylim, yscale, ...

    >>> figure = plot_lines({"train": ([1, 2], [0.5, 0.7])}, title="gap IoU", xlabel="epoch")
    >>> figure.axes[0].get_title(loc="left")
    'gap IoU'
    """
    from matplotlib.ticker import MaxNLocator

    style: Any = {"drawstyle": "steps-pre"} if steps else {"marker": "o", "markersize": 3}
    figure = new_figure(width, 2.3)
    panel = figure.subplots()
    for (name, (x, y)), colour in zip(lines.items(), _COLOURS, strict=False):
        panel.plot(x, y, linewidth=1.6, label=name, color=colour, **style)
    panel.set(**axis)
    panel.set_title(title, loc="left", fontsize=10)
    panel.tick_params(labelsize=8)
    if whole:
        panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    panel.grid(alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        panel.legend(frameon=False, fontsize=8)
    return figure
