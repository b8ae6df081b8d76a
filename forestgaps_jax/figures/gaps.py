"""How many gaps there are of which size."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy
from jaxtyping import Float, Int

from forestgaps_jax.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_RAW, _MEAN, _LINE = "#b8c4be", "#2a6f5e", "#e76f51"


def plot_gap_sizes(
    sizes: Mapping[float, Int[np.ndarray, " gaps"]],
    exponents: Mapping[float, float] | None = None,
    kmin: int = 1,
    pixel_area: float = 1.0,
) -> "Figure":
    """Number of gaps of each size on logarithmic axes, a panel for each height threshold.

    Light dots are the gaps of one size; dark ones the mean number for a size, over sizes from one power of 2
    to the next, sizes without a gap included: where gaps are large and rare, only these show the law.

    Args:
        sizes: pixels of each gap, by height threshold (metres).
        exponents: of the zeta distribution fitted from ``kmin`` on (see
            `forestgaps_jax.inference.fit_zeta`), drawn as a line where it is a number.
        kmin: least size that was fitted, pixels.
        pixel_area: m2 of a pixel; the axis is in m2.

    Raises:
        ValueError: nothing to draw.

    >>> figure = plot_gap_sizes({5.0: np.array([1, 1, 1, 2, 3, 9])}, {5.0: 1.8})
    >>> figure.axes[0].get_xscale()
    'log'
    """
    if not sizes:
        raise ValueError("there is no threshold to draw")
    columns = min(_COLUMNS, len(sizes))
    rows = math.ceil(len(sizes) / columns)
    figure = new_figure(max(3.1 * columns, 3.8), 3.1 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (threshold, pixels) in zip(axes, sizes.items(), strict=False):
        axis.set_title(f"gaps at {threshold:g} m", fontsize=10)
        _draw(axis, pixels, (exponents or {}).get(threshold, math.nan), kmin, pixel_area)
    for axis in axes[len(sizes) :]:
        axis.remove()
    for axis in axes[: len(sizes) : columns]:
        axis.set_ylabel("gaps of that size")
    for axis in axes[: len(sizes)][-columns:]:
        axis.set_xlabel("size (m²)")
        axis.tick_params(labelbottom=True)
    return figure


def _draw(
    axis: "Axes", pixels: Int[np.ndarray, " gaps"], exponent: float, kmin: int, pixel_area: float
) -> None:
    axis.set(xscale="log", yscale="log")
    axis.grid(alpha=0.25)
    if len(pixels) == 0:
        axis.text(0.5, 0.5, "no gap", transform=axis.transAxes, ha="center", va="center")
        return
    size, number = np.unique(pixels, return_counts=True)
    axis.plot(size * pixel_area, number, ".", color=_RAW, label=f"{len(pixels):,} gaps")
    size, number = _means(pixels, kmin)
    axis.plot(size * pixel_area, number, "o", color=_MEAN, markersize=5, label="mean of a bin")
    if not math.isnan(exponent):
        size = np.geomspace(kmin, max(pixels.max(), 2 * kmin), 50)
        expected = np.count_nonzero(pixels >= kmin) * size**-exponent / scipy.special.zeta(exponent, kmin)
        axis.plot(size * pixel_area, expected, color=_LINE, label=f"λ = {exponent:.2f}")
    axis.legend(frameon=False, fontsize=8)


def _means(
    pixels: Int[np.ndarray, " gaps"], kmin: int
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Middle and mean number of gaps of the sizes from ``kmin`` on, in bins that double; no empty ones."""
    edges = kmin * 2 ** np.arange(math.ceil(math.log2(max(pixels.max() / kmin, 1)) + 1e-9) + 2)
    number = np.histogram(pixels, edges)[0] / np.diff(edges)
    middle = np.sqrt(edges[:-1] * (edges[1:] - 1.0))
    return middle[number > 0], number[number > 0]
