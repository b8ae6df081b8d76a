"""The picture of a map: what is painted where."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from forestgaps_jax.figures.canvas import render
from forestgaps_jax.figures.gap_map import plot_gap_map

THRESHOLDS = [20.0, 5.0, 10.0]
# At how many thresholds a pixel is gap, in bands of 20 rows.
NESTED = np.repeat([[0.0], [1.0], [2.0], [3.0]], 20, axis=0) * np.ones((80, 6))


def picture(dsm=None, thresholds=THRESHOLDS):
    dsm = np.full(NESTED.shape, 300.0) if dsm is None else dsm
    rank = np.argsort(np.argsort(thresholds))
    gaps = np.stack([len(thresholds) - NESTED <= r for r in rank]).astype(float)
    return plot_gap_map(dsm, np.where(np.isfinite(dsm), gaps, np.nan), thresholds, 0.5)


def test_a_pixel_has_the_colour_of_the_lowest_threshold_at_which_it_is_gap():
    figure = picture()
    colours = {p.get_label(): np.array(to_rgb(p.get_facecolor())) for p in figure.legends[0].get_patches()}
    assert list(colours) == ["below 5 m: 25.0%", "below 10 m: 50.0%", "below 20 m: 75.0%"]
    surface, painted = (axis.images[0].get_array() for axis in figure.axes)
    np.testing.assert_array_equal(painted[:20], surface[:20])  # gap at no threshold
    shade = 0.55 + 0.45 * np.sqrt(0.5)  # of a plane under light from 45 degrees
    for rows, colour in zip((slice(60, 80), slice(40, 60), slice(20, 40)), colours.values(), strict=True):
        np.testing.assert_allclose(painted[rows], np.broadcast_to(colour * shade, (20, 6, 3)), atol=0.01)


def test_what_is_not_known_is_white():
    dsm = np.full(NESTED.shape, 300.0)
    dsm[30:50, 2:4] = np.nan
    for axis in picture(dsm).axes:
        image = axis.images[0].get_array()
        np.testing.assert_array_equal((image == 1).all(axis=2), np.isnan(dsm))


@pytest.mark.parametrize("shape", [(80, 6), (6, 80), (40, 40), (1, 1), (1, 30)])
def test_every_shape_is_drawn(shape):
    dsm = np.random.default_rng(0).normal(300, 5, shape)
    figure = plot_gap_map(dsm, np.ones((1, *shape)), [5.0], 1.0)
    first, second = (axis.get_subplotspec() for axis in figure.axes)
    below = second.rowspan.start > first.rowspan.start
    assert below == (shape[1] > shape[0])
    assert render(figure).std() > 1


def test_the_scale_bar_is_round_and_fits():
    figure = plot_gap_map(np.zeros((50, 100)), np.zeros((1, 50, 100)), [5.0], 13.0)
    (bar,) = [artist for artist in figure.axes[0].artists if hasattr(artist, "size_bar")]
    assert bar.txt_label.get_text() == "200 m"  # a quarter of 1300 m, rounded down
    line = bar.size_bar.get_children()[0]
    assert line.get_width() * 13.0 == pytest.approx(200)


def test_nothing_known_has_no_share():
    dsm = np.full((20, 20), np.nan)
    figure = plot_gap_map(dsm, np.full((1, 20, 20), np.nan), [5.0], 1.0)
    assert [patch.get_label() for patch in figure.legends[0].get_patches()] == ["below 5 m: nan%"]
