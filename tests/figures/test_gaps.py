import io

import numpy as np
import pytest
from scipy import special, stats

from forestgaps_jax.figures import plot_gap_sizes


def lines(axis):
    return {line.get_label(): line.get_xydata() for line in axis.lines}


def test_dots_count_gaps_and_the_line_is_the_law():
    sizes = stats.zipf.rvs(2.0, size=500, random_state=np.random.default_rng(0))
    figure = plot_gap_sizes({5.0: sizes}, {5.0: 2.0}, pixel_area=0.25)
    (axis,) = figure.axes
    drawn = lines(axis)
    assert set(drawn) == {"500 gaps", "mean of a bin", "λ = 2.00"}
    raw = dict(drawn["500 gaps"])
    assert raw[0.25] == np.count_nonzero(sizes == 1)
    assert raw[0.5] == np.count_nonzero(sizes == 2)
    assert raw.keys() == set(sizes * 0.25)
    area, expected = drawn["λ = 2.00"].T
    np.testing.assert_allclose(expected, 500 * stats.zipf.pmf(1, 2.0) * (area / 0.25) ** -2.0)
    assert area[0] == 0.25
    assert area[-1] == pytest.approx(sizes.max() * 0.25)


def test_bins_hold_all_gaps_from_the_least_size():
    sizes = np.array([1, 2, 4, 4, 5, 7, 8, 9, 15, 16, 300])
    (axis,) = plot_gap_sizes({5.0: sizes}, {5.0: 1.5}, kmin=4).axes
    drawn = lines(axis)
    # 4 to 7: 4 gaps in 4 sizes; 8 to 15: 3 in 8; 16 to 31: 1 in 16; 256 to 511: 1 in 256.
    np.testing.assert_allclose(drawn["mean of a bin"][:, 1], [1, 3 / 8, 1 / 16, 1 / 256])
    np.testing.assert_allclose(drawn["mean of a bin"][0, 0], np.sqrt(4 * 7))
    assert drawn["λ = 1.50"][0].tolist() == pytest.approx([4, 9 * 4**-1.5 / special.zeta(1.5, 4)])


def test_a_panel_for_each_threshold_also_without_gap_or_law():
    none = np.array([], int)
    sizes = {float(t): np.array([1, 1, 2, 30]) for t in range(2, 7)} | {9.5: none}
    figure = plot_gap_sizes(sizes, {9.5: np.nan, 2.0: 1.7})
    assert [axis.get_title() for axis in figure.axes] == [f"gaps at {t:g} m" for t in sizes]
    assert [text.get_text() for text in figure.axes[-1].texts] == ["no gap"]
    assert "λ = 1.70" in lines(figure.axes[0])
    assert set(lines(figure.axes[1])) == {"4 gaps", "mean of a bin"}
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")


def test_gaps_of_one_size_are_drawn():
    (axis,) = plot_gap_sizes({5.0: np.array([3, 3])}, kmin=3).axes
    np.testing.assert_allclose(lines(axis)["mean of a bin"], [[np.sqrt(3 * 5), 2 / 3]])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no threshold to draw"):
        plot_gap_sizes({})
