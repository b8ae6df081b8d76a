import io

import numpy as np
import pytest

from forestgaps_jax.figures.augmentation import AugmentedTile, plot_augmentation


def tile(rise=0.0, missing=()):
    ground = 100 + rise * np.arange(12.0)[None, :] * np.ones((12, 1))
    chm = np.full((12, 12), 20.0)
    chm[4:8, 4:8] = 1.0
    dsm = ground + chm
    if missing:
        dsm[missing] = np.nan
    return AugmentedTile(dsm, chm, ground, 0.5)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_each_tile_has_its_picture_and_its_profile(count):
    tiles = {f"tile {i}": tile(rise=i) for i in range(count)}
    figure = plot_augmentation(tiles, 5.0)
    pictures, profiles = figure.axes[::2], figure.axes[1::2]
    assert [axis.get_title() for axis in pictures] == list(tiles)
    for number, (picture, profile) in enumerate(zip(pictures, profiles, strict=True)):
        assert picture.images[0].get_array().shape == (12, 12)
        ground, surface = (line.get_ydata() for line in profile.lines)
        np.testing.assert_allclose(np.diff(ground), number)
        np.testing.assert_allclose(surface - ground, tiles["tile 0"].chm[6])
        np.testing.assert_allclose(profile.lines[0].get_xdata(), 0.5 * np.arange(12))
        assert profile.get_ylim() == profiles[0].get_ylim()
        assert profile.get_ylim()[1] >= max(ground.max(), surface.max())
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")


def test_only_what_is_missing_is_left_white():
    figure = plot_augmentation({"hole": tile(missing=np.s_[2:4, 2:4])}, 5.0)
    hidden = np.ma.getmaskarray(figure.axes[0].images[0].get_array())
    expected = np.zeros((12, 12), bool)
    expected[2:4, 2:4] = True
    np.testing.assert_array_equal(hidden, expected)


def test_a_tile_that_is_all_gap_has_no_outline():
    figure = plot_augmentation({"open": tile()._replace(chm=np.zeros((12, 12)))}, 5.0)
    assert not figure.axes[0].collections
    assert plot_augmentation({"closed": tile()}, 5.0).axes[0].collections


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no tile"):
        plot_augmentation({}, 5.0)
