import numpy as np
import pytest
from matplotlib import colormaps

from forestgaps_jax.figures.images import error_image, gap_image, probability_image, surface_image
from forestgaps_jax.figures.lines import plot_lines
from forestgaps_jax.figures.maps import ERROR_COLOURS, hillshade

RNG = np.random.default_rng(0)
KNOWN = RNG.uniform(size=(6, 9)) < 0.8
TRUTH, PREDICTED = RNG.uniform(size=(2, 6, 9)) < 0.5


def hexadecimal(image):
    return np.array([["#" + bytes(pixel[:3]).hex() for pixel in row] for row in image])


def test_each_pixel_has_the_colour_of_what_it_is():
    image = error_image(PREDICTED, TRUTH, KNOWN)
    names = np.array([["right: canopy", "missed gap"], ["false gap", "right: gap"]])[
        PREDICTED.astype(int), TRUTH.astype(int)
    ]
    expected = np.vectorize(ERROR_COLOURS.get)(names)
    assert (hexadecimal(image) == expected)[KNOWN].all()


@pytest.mark.parametrize(
    "image",
    [
        error_image(PREDICTED, TRUTH, KNOWN),
        gap_image(TRUTH, KNOWN),
        probability_image(RNG.uniform(size=(6, 9)).astype(np.float32), KNOWN),
        surface_image(np.where(KNOWN, RNG.uniform(0, 9, (6, 9)), np.nan)),
    ],
    ids=["errors", "gaps", "probability", "surface"],
)
def test_what_is_not_known_is_transparent(image):
    assert image.dtype == np.uint8
    assert (image[~KNOWN] == 0).all()


def test_probabilities_and_hillshade_have_their_colours():
    probability = np.array([[0.0, 0.5, 1.0, 0.337]], np.float32)
    expected = colormaps["viridis"]([0.0, 0.5, 1.0, 0.34], bytes=True)
    np.testing.assert_array_equal(probability_image(probability, np.ones((1, 4), bool))[0], expected)
    dsm = RNG.uniform(0, 9, (6, 9))
    grey = surface_image(dsm, 2.0)[..., 0]
    np.testing.assert_allclose(grey / 255, hillshade(dsm, 2.0), atol=2 / 255)


def test_lines_have_a_legend_where_there_are_several():
    one = plot_lines({"rate": ([1, 2], [0.1, 0.01])}, yscale="log", whole=True).axes[0]
    assert one.get_legend() is None
    assert one.get_yscale() == "log"
    two = plot_lines({"a": ([1, 2], [3, 4]), "b": ([1, 2], [5, np.nan])}, xlabel="epoch").axes[0]
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["a", "b"]
    assert two.get_xlabel() == "epoch"
    np.testing.assert_allclose(two.lines[0].get_xydata(), [[1, 3], [2, 4]])
    assert plot_lines({"a": ([1, 2], [3, 4])}, steps=True).axes[0].lines[0].get_drawstyle() == "steps-pre"
