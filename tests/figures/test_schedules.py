import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from forestgaps_jax.figures.schedules import plot_schedules

RATES = {f"schedule_{i}": list(0.1 * 0.5 ** np.arange(i, i + 5)) for i in range(9)}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_a_panel_a_schedule_with_all_in_the_background(count):
    rates = dict(list(RATES.items())[:count])
    figure = plot_schedules(rates)
    assert isinstance(figure, Figure)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(rates)
    for axis, values in zip(figure.axes, rates.values(), strict=True):
        assert len(axis.lines) == count
        front = axis.lines[-1]
        np.testing.assert_allclose(front.get_data(), [[1, 2, 3, 4, 5], values])
        assert front.get_linewidth() == max(line.get_linewidth() for line in axis.lines)
        assert to_hex(front.get_color()) not in {to_hex(line.get_color()) for line in axis.lines[:-1]}
        assert axis.get_yscale() == "log"
        assert axis.get_ylim() == figure.axes[0].get_ylim()
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 2, 4, 8, 9])
def test_each_column_says_epoch_once_and_each_row_says_learning_rate_once(count):
    axes = plot_schedules(dict(list(RATES.items())[:count])).axes
    columns, rows = min(count, 3), -(-count // 3)
    assert sum(axis.get_xlabel() == "epoch" for axis in axes) == columns
    assert sum(axis.get_ylabel() == "learning rate" for axis in axes) == rows


def test_a_rate_of_0_is_left_out_of_the_logarithm():
    figure = plot_schedules({"to_nothing": [0.1, 0.01, 0.0]})
    figure.savefig(io.BytesIO(), dpi=40)
    low, _ = figure.axes[0].get_ylim()
    assert 0 < low < 0.01


def test_schedules_may_differ_in_length():
    figure = plot_schedules({"short": [0.1], "long": np.full(7, 0.2)})
    assert [len(axis.lines[-1].get_xdata()) for axis in figure.axes] == [1, 7]


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no schedule"):
        plot_schedules({})
