import numpy as np

from forestgaps_jax.figures.calibration import plot_reliability


def test_points_are_the_filled_bins_over_bars_of_their_pixels():
    mean, share = np.array([0.05, np.nan, 0.9]), np.array([0.1, np.nan, 0.6])
    pixels = np.array([1000, 0, 7])
    figure = plot_reliability(mean, share, pixels, "below 5 m")
    curve, bars = figure.axes
    diagonal, line = curve.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    np.testing.assert_allclose(line.get_xydata(), [[0.05, 0.1], [0.9, 0.6]])
    assert [patch.get_height() for patch in bars.patches] == pixels.tolist()
    np.testing.assert_allclose([patch.get_x() for patch in bars.patches], [0, 1 / 3, 2 / 3])
    assert bars.get_yscale() == "log"
    assert curve.get_title(loc="left") == "below 5 m"


def test_nothing_at_all_is_drawn_too():
    nothing = np.full(4, np.nan)
    figure = plot_reliability(nothing, nothing, np.zeros(4, int))
    figure.draw_without_rendering()
    assert len(figure.axes[0].lines[1].get_xydata()) == 0
