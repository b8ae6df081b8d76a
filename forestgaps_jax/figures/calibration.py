"""Predicted probabilities beside the shares of gap that were found."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from forestgaps_jax.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE, _DIAGONAL = "#2a9d8f", "#8a949e"


def plot_reliability(
    mean_probability: Float[np.ndarray, " bins"],
    gap_share: Float[np.ndarray, " bins"],
    pixels: Int[np.ndarray, " bins"],
    title: str = "",
) -> "Figure":
    """Reliability diagram: the share of gap over the predicted probability, and the pixels in each bin.

    Bins are of equal width, from 0 to 1. The diagonal is where a probability says what is found.

    Args:
        mean_probability: of the pixels in each bin; NaN, as the next, for one without pixels.
        gap_share: of the pixels in each bin.
        pixels: in each bin, drawn on a logarithmic axis.
        title: stands above.

    Source: DeGroot and Fienberg 1983, The comparison and evaluation of forecasters; Niculescu-Mizil and
    Caruana 2005, Predicting good probabilities with supervised learning.
    """
    figure = new_figure(2.6, 3.2)
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], "--", color=_DIAGONAL, linewidth=1)
    filled = pixels > 0
    curve.plot(mean_probability[filled], gap_share[filled], "o-", color=_LINE, markersize=4, clip_on=False)
    curve.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of gap found")
    curve.set_title(title, loc="left", fontsize=10)
    edges = np.linspace(0.0, 1.0, len(pixels) + 1)
    bars.bar(edges[:-1], pixels, width=np.diff(edges), align="edge", color=_LINE, alpha=0.45, linewidth=0)
    bars.set(xlabel="predicted probability", ylabel="pixels")
    if filled.any():
        bars.set_yscale("log")
    bars.set_ylim(0.5, max(10.0, 2.0 * float(pixels.max(initial=1))))
    bars.minorticks_off()
    for axis in (curve, bars):
        axis.grid(alpha=0.2)
        axis.tick_params(labelsize=8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
