"""Right and wrong pixels: the confusion matrix, and precision against recall over the probability cuts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from forestgaps_jax.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CLASSES = ("gap", "no gap")
_CELLS = (("tp", "fn"), ("fp", "tn"))
"""A row a true class, a column a predicted one."""
_DARK = 0.6  # share from which a cell's colour needs white text
_CUT = 0.5


def plot_confusion(matrix: Mapping[str, Any], title: str = "") -> "Figure":
    """Pixels by truth (rows) and prediction (columns), each with its share of the row.

    Args:
        matrix: counts under ``tp``, ``fp``, ``fn``, ``tn``, as `confusion_matrix` gives them.
        title: stands above.
    """
    counts = np.array([[int(matrix[cell]) for cell in row] for row in _CELLS])
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    figure = new_figure(4.4, 3.6)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, names in enumerate(_CELLS):
        for column, name in enumerate(names):
            share = shares[row, column]
            label = f"{name.upper()}\n{counts[row, column]:,}\n" + (
                "undefined" if np.isnan(share) else f"{share:.1%}"
            )
            colour = "white" if share > _DARK else "black"
            axis.text(column, row, label, ha="center", va="center", color=colour)
    axis.set_xticks(range(2), _CLASSES)
    axis.set_yticks(range(2), _CLASSES, rotation=90, va="center")
    axis.set(xlabel="prediction", ylabel="truth", title=title)
    figure.colorbar(image, ax=axis, label="share of the true class")
    return figure


_Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def plot_precision_recall(curves: Mapping[Any, _Curve] | _Curve) -> "Figure":
    """Precision against recall, a line for each height threshold, with a dot at the cut of 0.5.

    Args:
        curves: precision, recall and probability cut, as `precision_recall_curve` gives them, by height
            threshold (metres) or by another name; or one of them. One without gap or without a prediction
            is left out.
    """
    named = isinstance(curves, Mapping)
    figure = new_figure(4.6, 4.2)
    axis = figure.subplots()
    for name, (precision, recall, cut) in (curves if named else {"": curves}).items():
        if not np.isfinite(precision + recall).any():
            continue
        label = name if isinstance(name, str) else f"below {name:g} m"
        (line,) = axis.plot(recall, precision, label=label)
        middle = np.argmin(np.abs(cut - _CUT))
        axis.plot(recall[middle], precision[middle], "o", color=line.get_color())
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    if named and axis.lines:
        axis.legend(frameon=False)
    return figure
