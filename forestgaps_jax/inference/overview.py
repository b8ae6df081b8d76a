"""A raster too large for a picture, gathered strip by strip on coarser pixels."""

import math

import numpy as np
from jaxtyping import Float


class Overview:
    """Means over squares of ``factor`` x ``factor`` pixels, of the known ones.

    Args:
        shape: rows and columns of the raster.
        layers: values of a pixel.
        longest: most squares along a side.

    >>> overview = Overview((2, 4), layers=1, longest=2)
    >>> overview.add(0, np.array([[[1.0, 3.0, 5.0, np.nan], [1.0, 3.0, 7.0, np.nan]]]))
    >>> overview.means().tolist()
    [[[2.0, 6.0]]]
    """

    def __init__(self, shape: tuple[int, int], layers: int, longest: int = 1200):
        self.factor = math.ceil(max(shape) / longest)
        squares = [math.ceil(side / self.factor) for side in shape]
        self.sums, self.counts = np.zeros((layers, *squares)), np.zeros((layers, *squares))

    def add(self, first_row: int, values: Float[np.ndarray, "layers rows width"]) -> None:
        """Take in rows; NaN counts for nothing."""
        known = ~np.isnan(values)
        squares, starts = np.unique(
            (first_row + np.arange(values.shape[1])) // self.factor, return_index=True
        )
        self.sums[:, squares] += self._sums(np.where(known, values, 0.0), starts)
        self.counts[:, squares] += self._sums(known, starts)

    def _sums(self, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
        down = np.add.reduceat(values.astype(float), starts, axis=1)
        return np.add.reduceat(down, np.arange(0, values.shape[2], self.factor), axis=2)

    def means(self) -> Float[np.ndarray, "layers height width"]:
        """The mean of each square; NaN where nothing is known."""
        with np.errstate(invalid="ignore"):
            return self.sums / self.counts
