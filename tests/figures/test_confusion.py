import io
import math

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from forestgaps_jax.figures.confusion import plot_confusion, plot_precision_recall
from forestgaps_jax.metrics import ProbabilityHistogram, confusion_matrix, precision_recall_curve

MATRIX = {"tp": 6, "fp": 1, "fn": 2, "tn": 11}


def drawn(figure):
    """It saves to a PNG, with nothing cut off."""
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")
    return figure


def cells(figure):
    """The texts in the panel, by the class of their row and of their column as the ticks name them."""
    axis = drawn(figure).axes[0]
    columns = {tick.get_position()[0]: tick.get_text() for tick in axis.get_xticklabels()}
    rows = {tick.get_position()[1]: tick.get_text() for tick in axis.get_yticklabels()}
    places = {text.get_position(): text.get_text() for text in axis.texts}
    return {(rows[y], columns[x]): text.split("\n") for (x, y), text in places.items()}


def test_fault_09_false_positives_and_negatives_are_not_swapped():
    """In the original, false positives stood where gaps are missed."""
    predicted = np.array([True] * 7 + [False] * 13)
    truth = np.array([True] * 6 + [False] + [True] * 2 + [False] * 11)
    found = {
        (row, column): np.sum((truth == (row == "gap")) & (predicted == (column == "gap")))
        for row in ("gap", "no gap")
        for column in ("gap", "no gap")
    }
    figure = plot_confusion(MATRIX)
    assert {place: int(text[1]) for place, text in cells(figure).items()} == found
    assert cells(figure)["gap", "no gap"][:2] == ["FN", "2"]
    assert cells(figure)["no gap", "gap"][:2] == ["FP", "1"]
    axis = figure.axes[0]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("truth", "prediction")


def test_each_cell_has_its_share_of_the_row_in_number_and_colour():
    figure = plot_confusion(MATRIX, "below 5 m")
    assert {place: text[2] for place, text in cells(figure).items()} == {
        ("gap", "gap"): "75.0%",
        ("gap", "no gap"): "25.0%",
        ("no gap", "gap"): "8.3%",
        ("no gap", "no gap"): "91.7%",
    }
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, [[6 / 8, 2 / 8], [1 / 12, 11 / 12]])
    assert figure.axes[0].get_title() == "below 5 m"


def test_first_row_is_drawn_at_the_top():
    axis = drawn(plot_confusion(MATRIX)).axes[0]
    gap, rest = (axis.transData.transform((0, row))[1] for row in (0, 1))
    assert gap > rest


def test_counts_of_the_metrics_serve_whatever_their_size():
    matrix = confusion_matrix(np.array([2**40, 1, 0, 3]))
    assert cells(plot_confusion(matrix))["gap", "gap"][1] == "1,099,511,627,776"


def test_a_class_without_pixels_has_no_share():
    text = cells(plot_confusion({"tp": 0, "fp": 1, "fn": 0, "tn": 3}))
    assert text["gap", "gap"] == ["TP", "0", "undefined"]
    assert text["no gap", "gap"] == ["FP", "1", "25.0%"]


@pytest.mark.parametrize("missing", MATRIX)
def test_a_matrix_that_lacks_a_count_is_refused(missing):
    with pytest.raises(KeyError, match=missing):
        plot_confusion({name: n for name, n in MATRIX.items() if name != missing})


def curve(seed, gap=0.4):
    rng = np.random.default_rng(seed)
    truth = rng.random((1, 400)) < gap
    logits = rng.normal(np.where(truth, 1, -1), 2).astype(np.float32)
    return precision_recall_curve(
        ProbabilityHistogram.zeros(1).update(jnp.asarray(logits), jnp.asarray(truth))
    )


def test_precision_is_drawn_over_recall_with_a_dot_at_one_half():
    curves = {5.0: curve(1), "all": curve(2), 20.0: curve(3, gap=0.0)}
    axis = drawn(plot_precision_recall(curves)).axes[0]
    lines = [line for line in axis.lines if len(line.get_xdata()) > 1]
    dots = [line for line in axis.lines if len(line.get_xdata()) == 1]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["below 5 m", "all"]
    for line, dot, (precision, recall, cut) in zip(lines, dots, list(curves.values())[:2], strict=True):
        np.testing.assert_array_equal(line.get_data(), [recall, precision])
        (half,) = np.flatnonzero(cut == 0.5)
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (recall[half], precision[half])
        assert dot.get_color() == line.get_color()
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("recall", "precision")


def test_curves_that_are_nowhere_defined_leave_an_empty_panel():
    axis = drawn(plot_precision_recall({5.0: curve(3, gap=0.0)})).axes[0]
    assert not axis.lines
    assert math.isclose(axis.get_xlim()[1], 1.02)


def test_one_curve_needs_no_name():
    precision, recall, _ = one = curve(1)
    axis = drawn(plot_precision_recall(one)).axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_data(), [recall, precision])
    assert axis.get_legend() is None
