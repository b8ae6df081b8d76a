import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from forestgaps_jax.figures.canvas import new_figure
from forestgaps_jax.report.pictures import inline_svg, png_uri

RNG = np.random.default_rng(0)


def decoded(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("colours", [1, 40, 256, 300])
def test_an_image_comes_back_as_it_was(colours):
    palette = np.unique(RNG.integers(0, 256, (4 * colours, 4), np.uint8), axis=0)
    palette = palette[RNG.permutation(len(palette))[:colours]]
    image = palette[np.concatenate([np.arange(colours), RNG.integers(0, colours, 600 - colours)])].reshape(
        20, 30, 4
    )
    picture = decoded(png_uri(image))
    assert picture.mode == ("P" if colours <= 256 else "RGBA")
    np.testing.assert_array_equal(np.asarray(picture.convert("RGBA")), image)


def test_a_large_image_is_thinned():
    image = RNG.integers(0, 2, (600, 300, 4), np.uint8)
    shown = np.asarray(decoded(png_uri(image)).convert("RGBA"))
    np.testing.assert_array_equal(shown, image[::3, ::3])


def drawing():
    figure = new_figure(3.0, 2.0)
    axis = figure.subplots()
    axis.semilogy([1, 10], [1, 1000], "o-", label="a < b & c")
    axis.legend()
    return figure


def test_a_drawing_is_one_element_with_ids_of_its_own_and_no_reference():
    svg = inline_svg(drawing(), "one", 'a "label" <b>')
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'a "label" <b>'
    assert root.get("viewBox")
    assert root.get("width") is None
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 5
    assert all(name.startswith("one-") for name in ids)
    links = [value for element in root.iter() for key, value in element.items() if key.endswith("href")]
    links += [f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", svg)]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_a_drawing_has_the_ink_and_the_letters_of_the_page():
    svg = inline_svg(drawing(), "one", "label")
    assert "currentColor" in svg
    assert "#000000" not in svg
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
    assert "a < b & c" in texts


def test_the_same_drawing_is_the_same_text():
    assert inline_svg(drawing(), "one", "label") == inline_svg(drawing(), "one", "label")
