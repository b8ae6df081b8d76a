"""How a raster is cut into overlapping windows, and what each of them weighs."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int


@dataclass(frozen=True)
class Windows:
    """How a raster is cut into windows, and what is computed of each.

    Attributes:
        tile_size: side of a window, pixels; a multiple of the network's stride.
        overlap: share of a window that the next one repeats: 0.5 looks at each pixel four times.
        batch_size: windows that are computed at once.
        flips: mean over the 8 symmetries of the square: 8 times the work.
        samples: random passes for the standard deviation; 0 for none.

    Raises:
        ValueError: a value that cannot be; says what is allowed.
    """

    tile_size: int = 128
    overlap: float = 0.5
    batch_size: int = 8
    flips: bool = False
    samples: int = 0

    def __post_init__(self) -> None:
        for name in ("tile_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if not 0.0 <= self.overlap < 1.0:
            raise ValueError(f"overlap = {self.overlap}: must be from 0 to below 1")


class Axis(NamedTuple):
    """Windows along one side of a raster.

    Attributes:
        starts: first pixel of each window.
        weights: share of each window in each of its pixels; over all windows of a pixel they add up to 1.
    """

    starts: Int[np.ndarray, " windows"]
    weights: Float64[np.ndarray, "windows tile"]


def lay_windows(length: int, tile_size: int, overlap: float) -> Axis:
    """Spread windows evenly over a side, the first at its start, the last at its end.

    The weights are Hann's window, which at no pixel is zero, divided by their sum: a pixel at the border,
    which one window alone sees, counts in full.

    Args:
        length: of the side, pixels; shorter than a window gives one window, which sticks out at the end.
        tile_size: side of a window, pixels.
        overlap: least share of a window that the next one repeats.

    >>> axis = lay_windows(10, 4, 0.5)
    >>> axis.starts.tolist()
    [0, 2, 4, 6]
    >>> axis.weights[0].round(3).tolist()
    [1.0, 1.0, 0.854, 0.146]
    """
    step = max(1, math.floor(tile_size * (1 - overlap) + 1e-9))
    count = 1 + max(0, math.ceil((length - tile_size) / step))
    starts = np.linspace(0, max(0, length - tile_size), count).round().astype(int)
    hann = np.sin(np.pi * (np.arange(tile_size) + 0.5) / tile_size) ** 2
    total = np.zeros(max(length, tile_size))
    for start in starts:
        total[start : start + tile_size] += hann
    return Axis(starts, np.stack([hann / total[start : start + tile_size] for start in starts]))


def count_windows(shape: tuple[int, int], windows: Windows) -> int:
    """Windows that a raster of ``shape`` is cut into, those without a known pixel among them."""
    return math.prod(len(lay_windows(side, windows.tile_size, windows.overlap).starts) for side in shape)
