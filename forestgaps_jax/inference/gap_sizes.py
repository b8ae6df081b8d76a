"""How gap sizes are distributed: the exponent of a discrete power law."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy import optimize, special

_STEEPEST = 20.0  # exponent, as in ForestGapR; a forest has 1.3 to 3
_FLATTEST = 1.0 + 1e-6  # without a largest size the law has no sum from 1 down
_FLATTEST_CUT = -5.0
_STEP = 1e-3


@dataclass(frozen=True)
class ZetaFit:
    """A zeta distribution fitted to gap sizes: ``P(k)`` is proportional to ``k ** -exponent``.

    Attributes:
        exponent: lambda: the lower, the more large gaps; below 2 the largest make most of the area. NaN where
            undefined.
        standard_error: of the exponent, from the curvature of the likelihood. NaN where undefined.
        n: gaps that were fitted.
        kmin: least size, pixels.
        kmax: greatest size, pixels; None for no limit.
    """

    exponent: float
    standard_error: float
    n: int
    kmin: int = 1
    kmax: int | None = None

    def expected(self, sizes: Int[np.ndarray, " sizes"]) -> np.ndarray:
        """Number of the ``n`` gaps that the law expects to have each of these sizes (pixels)."""
        log_norm = _log_norm(self.exponent, self.kmin, self.kmax)
        inside = (sizes >= self.kmin) & (sizes <= (math.inf if self.kmax is None else self.kmax))
        return np.where(inside, self.n * np.exp(-self.exponent * np.log(sizes) - log_norm), 0.0)


def fit_zeta(sizes: Int[np.ndarray, " gaps"], kmin: int = 1, kmax: int | None = None) -> ZetaFit:
    """Fit the exponent of gap sizes by maximum likelihood.

    Sizes are whole numbers of pixels (`Gaps.pixels`), not m2: only exponents from maps of the same pixel size
    and the same ``kmin`` compare.

    Args:
        sizes: pixels of each gap.
        kmin: least size that counts; smaller ones are left out. Where small gaps were removed it must say so:
            an exponent fitted from 1 on would be far too low.
        kmax: greatest size that counts, where larger gaps were removed or cut; then the law ends there, and
            exponents of 1 and less exist. None: no end, as Asner et al. and ForestGapR have it.

    Returns:
        The fit; its exponent and error are NaN without a gap, or where all have the least (or greatest) size.

    Raises:
        ValueError: a size below 1, or limits that are not ``1 <= kmin < kmax``.

    Source: White, Enquist and Green 2008, On estimating the exponent of power-law frequency distributions,
    doi:10.1890/07-1288.1; Asner et al. 2013, Forest canopy gap distributions in the southern Peruvian Amazon,
    doi:10.1371/journal.pone.0060875.

    >>> fit = fit_zeta(np.array([1, 1, 1, 1, 1, 2, 2, 3, 5, 40]))
    >>> round(fit.exponent, 2), round(fit.standard_error, 2), fit.n
    (1.81, 0.27, 10)
    """
    if not kmin >= 1 or (kmax is not None and kmax <= kmin):
        raise ValueError(f"kmin = {kmin}, kmax = {kmax}: must be 1 <= kmin < kmax (pixels), or kmax None")
    if np.any(sizes < 1):
        raise ValueError(f"a gap of {sizes.min()} pixels: sizes are whole numbers of pixels from 1")
    counted = sizes[(sizes >= kmin) & (sizes <= (math.inf if kmax is None else kmax))]
    n, low = len(counted), _FLATTEST if kmax is None else _FLATTEST_CUT
    if n == 0 or counted.max() == kmin or counted.min() == kmax:
        return ZetaFit(math.nan, math.nan, n, kmin, kmax)
    mean_log = float(np.log(counted).mean())

    def cost(exponent: float) -> float:
        return exponent * mean_log + _log_norm(exponent, kmin, kmax)

    best: Any = optimize.minimize_scalar(
        cost, bounds=(low, _STEEPEST), method="bounded", options={"xatol": 1e-9}
    )
    exponent = float(best.x)
    if min(exponent - low, _STEEPEST - exponent) < 1e-6:
        return ZetaFit(math.nan, math.nan, n, kmin, kmax)
    step = _STEP * (1.0 if kmax is not None else min(1.0, exponent - 1.0))
    curvature = (cost(exponent + step) - 2 * cost(exponent) + cost(exponent - step)) / step**2
    return ZetaFit(exponent, 1 / math.sqrt(n * curvature), n, kmin, kmax)


def _log_norm(exponent: float, kmin: int, kmax: int | None) -> float:
    """Logarithm of the sum of ``k ** -exponent`` over the sizes."""
    if kmax is None:
        return float(np.log(special.zeta(exponent, kmin)))
    return float(special.logsumexp(-exponent * np.log(np.arange(kmin, kmax + 1))))
