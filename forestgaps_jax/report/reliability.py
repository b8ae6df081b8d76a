"""Whether a predicted probability is the share of gaps that is then found."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 10
"""Of equal width, from 0 to 1."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Pixels by predicted probability, as sums, so that those of several tiles add up.

    Attributes:
        pixels: how many have their probability in each bin.
        gaps: how many of them are gap.
        probability: sum of their probabilities.
    """

    pixels: Int[np.ndarray, " bins"]
    gaps: Int[np.ndarray, " bins"]
    probability: Float[np.ndarray, " bins"]

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.pixels + other.pixels, self.gaps + other.gaps, self.probability + other.probability
        )

    @property
    def mean_probability(self) -> Float[np.ndarray, " bins"]:
        """Of the pixels in each bin; NaN where it has none."""
        return self._mean(self.probability)

    @property
    def gap_share(self) -> Float[np.ndarray, " bins"]:
        """Of the pixels in each bin; NaN where it has none."""
        return self._mean(self.gaps)

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance between both, weighted by the pixels in the bins; NaN without a pixel.

        Source: Naeini, Cooper and Hauskrecht 2015, Obtaining Well Calibrated Probabilities Using Bayesian
        Binning, for the probability of one class.
        """
        total = int(self.pixels.sum())
        return float(np.abs(self.probability - self.gaps).sum()) / total if total else math.nan

    def _mean(self, sums: np.ndarray) -> Float[np.ndarray, " bins"]:
        empty = np.full(self.pixels.shape, np.nan)
        return np.divide(sums, self.pixels, out=empty, where=self.pixels > 0)


def reliability(
    probability: Float[np.ndarray, "..."],
    truth: Bool[np.ndarray, "..."],
    valid: Bool[np.ndarray, "..."] | None = None,
) -> Reliability:
    """Sort pixels into ten bins of predicted probability; a bin holds its upper edge, the first also 0.

    Args:
        probability: of gap.
        truth: True where there is gap.
        valid: pixels that count; None for all.

    Raises:
        ValueError: a probability that counts is not from 0 to 1.

    >>> result = reliability(np.array([0.05, 0.95, 0.91]), np.array([False, True, False]))
    >>> result.pixels[[0, 9]].tolist(), float(result.gap_share[9])
    ([1, 2], 0.5)
    """
    if valid is not None:
        probability, truth = probability[valid], truth[valid]
    p, gap = probability.ravel().astype(np.float64), truth.ravel()
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probability holds values that are not from 0 to 1: give what predict gives")
    place = np.searchsorted(np.linspace(0.0, 1.0, BINS + 1)[1:-1], p)
    return Reliability(
        np.bincount(place, minlength=BINS),
        np.bincount(place[gap], minlength=BINS),
        np.bincount(place, weights=p, minlength=BINS).astype(np.float64),  # of nothing it gives integers
    )
