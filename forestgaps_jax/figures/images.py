"""Tiles as images of their own, a pixel of the tile a pixel of the image."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from forestgaps_jax.figures.maps import ERROR_COLOURS, GAP_COLOURS, hillshade

Image = UInt8[np.ndarray, "height width 4"]
"""Red, green, blue and opacity; what is not known is transparent."""


def surface_image(dsm: Float[np.ndarray, "height width"], resolution: float = 1.0) -> Image:
    """Hillshade of a surface (m) with pixels of a size (m)."""
    return _coloured(hillshade(dsm, resolution), "gray", np.isfinite(dsm))


def gap_image(gap: Bool[np.ndarray, "height width"], known: Bool[np.ndarray, "height width"]) -> Image:
    """Gaps and canopy in two colours."""
    return _coloured(gap.astype(float), GAP_COLOURS, known)


def probability_image(
    probability: Float[np.ndarray, "height width"], known: Bool[np.ndarray, "height width"]
) -> Image:
    """Probabilities from 0 to 1 in the colours of viridis, rounded to hundredths."""
    return _coloured(np.round(probability, 2), "viridis", known)


def error_image(
    predicted: Bool[np.ndarray, "height width"],
    truth: Bool[np.ndarray, "height width"],
    known: Bool[np.ndarray, "height width"],
) -> Image:
    """Each pixel in the colour that `ERROR_COLOURS` gives to what it is: right or wrong, gap or canopy.

    >>> yes, no = np.ones((1, 1), bool), np.zeros((1, 1), bool)
    >>> error_image(yes, no, yes)[0, 0].tolist()  # false gap: #e76f51
    [231, 111, 81, 255]
    """
    from matplotlib.colors import to_rgba_array

    palette = np.round(255 * to_rgba_array(list(ERROR_COLOURS.values()))).astype(np.uint8)
    kind = np.select([predicted & truth, ~predicted & ~truth, predicted & ~truth], [0, 1, 2], 3)
    image = palette[kind]
    image[~known] = 0
    return image


def _coloured(values: np.ndarray, colours: str, known: np.ndarray) -> Image:
    from matplotlib import colormaps

    shown = known & np.isfinite(values)
    image = np.asarray(colormaps[colours](np.where(shown, values, 0.0), bytes=True)).copy()
    image[~shown] = 0
    return image
