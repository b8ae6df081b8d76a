"""Pictures as a part of the page: drawings as inline SVG, images as PNG in a data URI."""

import base64
import io
import re
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST = 256  # pixels a side; of a larger image every second, third, ... is shown
_INK = "#000000"


def inline_svg(figure: "Figure", name: str, label: str) -> Markup:
    """A drawing as an SVG element in the page's own ink and letters, also where the page is dark.

    Args:
        figure: of matplotlib.
        name: of this drawing alone on its page; begins all its ids.
        label: what a reader who does not see it is told.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor")
    # The page gives the size; without one of its own the drawing keeps its proportions.
    head = re.sub(r' (width|height)="[^"]*pt"', "", text[: text.index(">")])
    width = float(figure.get_figwidth())
    attributes = f' role="img" aria-label="{escape(label)}" style="max-width:{1.2 * width:.1f}in"'
    return Markup(f"{head}{attributes}{text[text.index('>') :]}")  # matplotlib escapes its texts


def png_uri(image: UInt8[np.ndarray, "height width 4"]) -> str:
    """An image as a data URI, with a palette where it has no more than 256 colours."""
    from PIL import Image

    step = -(-max(image.shape[:2]) // _LARGEST)
    image = np.ascontiguousarray(image[::step, ::step])
    colours, index = np.unique(image.reshape(-1, 4), axis=0, return_inverse=True)
    file = io.BytesIO()
    if len(colours) <= 256:
        picture = Image.fromarray(index.reshape(image.shape[:2]).astype(np.uint8))
        picture.putpalette(colours[:, :3].tobytes())
        picture.save(file, format="PNG", optimize=True, transparency=colours[:, 3].tobytes())
    else:
        Image.fromarray(image).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
