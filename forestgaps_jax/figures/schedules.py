"""Learning rates over the epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from forestgaps_jax.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_LINE, _OTHERS = "#2a6f5e", "#dde1df"


_Rates = Sequence[float] | Float[np.ndarray, " epochs"]


def plot_schedules(rates: Mapping[str, _Rates]) -> "Figure":
    """A panel for each schedule: its learning rate over the epochs, on the same axes as all the others.

    The axis is logarithmic; a rate of 0 is not drawn.

    Args:
        rates: learning rate of each epoch by the name of the schedule, as
            `forestgaps_jax.optimization.learning_rates` gives it.

    Raises:
        ValueError: nothing to draw.

    >>> figure = plot_schedules({"constant": [0.1, 0.1], "exponential": [0.1, 0.05]})
    >>> [axis.get_title(loc="left") for axis in figure.axes]
    ['constant', 'exponential']
    """
    if not rates:
        raise ValueError("there is no schedule to draw")
    columns, rows = min(len(rates), _COLUMNS), math.ceil(len(rates) / _COLUMNS)
    figure = new_figure(3.6 * columns, 1.9 * rows + 0.5)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, name in zip(axes, rates, strict=False):
        for other in rates:
            if other != name:
                _draw(axis, rates[other], color=_OTHERS, linewidth=0.8)
        _draw(axis, rates[name], color=_LINE, linewidth=2.0)
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold", color=_LINE, family="monospace")
        axis.set_yscale("log", nonpositive="mask")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
    for axis in axes[len(rates) :]:
        axis.remove()
    _label_outer(axes[: len(rates)], columns)
    return figure


def _draw(axis: "Axes", rates: _Rates, color: str, linewidth: float) -> None:
    axis.plot(np.arange(1, len(rates) + 1), rates, color=color, linewidth=linewidth)


def _label_outer(axes: np.ndarray, columns: int) -> None:
    for axis in axes[::columns]:
        axis.set_ylabel("learning rate")
    for axis in axes[-columns:]:  # the last of each column, also above an empty place
        axis.set_xlabel("epoch")
        axis.tick_params(labelbottom=True)
