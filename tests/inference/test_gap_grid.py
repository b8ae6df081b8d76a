import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import stats
from sklearn import metrics as sk

from forestgaps_jax.inference import gap_fraction, gap_fraction_agreement
from forestgaps_jax.types import Grid

RNG = np.random.default_rng(0)
MASK, VALID = RNG.uniform(size=(23, 31)) < 0.4, RNG.uniform(size=(23, 31)) < 0.7


@given(
    resolution=st.sampled_from([0.3, 0.5, 1.0, 2.0]),
    cell=st.sampled_from([2.0, 3.0, 3.7, 10.0, 100.0]),
    min_known=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
)
def test_each_cell_holds_the_pixels_whose_centre_is_in_it(resolution, cell, min_known):
    found = gap_fraction(MASK, VALID, resolution, cell, min_known)
    rows, columns = (np.floor((np.arange(n) + 0.5) * resolution / cell + 1e-9) for n in MASK.shape)
    assert found.fraction.shape == (rows.max() + 1, columns.max() + 1)
    for (row, column), fraction in np.ndenumerate(found.fraction):
        pixels = np.ix_(rows == row, columns == column)
        known = VALID[pixels].sum()
        share = min(known * resolution**2 / cell**2, 1)
        assert found.known[row, column] == pytest.approx(share)
        defined = known and share >= min_known - 1e-12
        expected = (MASK & VALID)[pixels].sum() / known if defined else math.nan
        assert fraction == pytest.approx(expected, nan_ok=True)


def test_cells_lie_where_the_raster_does():
    grid = Grid(0.5, 300.0, 900.0, None)
    found = gap_fraction(MASK, None, grid, cell=5.0)
    assert found.grid == Grid(5.0, 300.0, 900.0, None)
    assert found.fraction[0, 0] == MASK[:10, :10].mean()
    # 23 rows of 0.5 m: of the third row of cells only 3 pixels are there.
    assert found.known[2, 0] == pytest.approx(0.3)
    assert np.isnan(found.fraction[2, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": 0.5}, "a cell must hold a pixel"),
        ({"cell": math.nan}, "a cell must hold a pixel"),
        ({"resolution": 0.0}, "a cell must hold a pixel"),
        ({"min_known": 1.5}, "min_known = 1.5"),
    ],
)
def test_cells_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        gap_fraction(MASK, VALID, **({"resolution": 1.0} | options))


def test_agreement_is_that_of_scikit_learn_and_scipy():
    truth = RNG.uniform(size=(8, 9))
    predicted = 0.8 * truth + 0.1 + 0.05 * RNG.normal(size=truth.shape)
    predicted[0], truth[:, 0] = np.nan, np.nan
    found = gap_fraction_agreement(predicted, truth)
    y, x = predicted[1:, 1:].ravel(), truth[1:, 1:].ravel()
    line = stats.linregress(x, y)
    assert found == {
        "n": 7 * 8,
        "r2": pytest.approx(sk.r2_score(x, y)),
        "rmse": pytest.approx(sk.root_mean_squared_error(x, y)),
        "mae": pytest.approx(sk.mean_absolute_error(x, y)),
        "bias": pytest.approx((y - x).mean()),
        "slope": pytest.approx(line.slope),
        "intercept": pytest.approx(line.intercept),
    }


@pytest.mark.parametrize(
    ("truth", "undefined"),
    [
        ([[math.nan, math.nan]], {"r2", "rmse", "mae", "bias", "slope", "intercept"}),
        ([[0.3, math.nan]], {"r2", "slope", "intercept"}),
        ([[0.3, 0.3]], {"r2", "slope", "intercept"}),
    ],
)
def test_agreement_without_spread_is_undefined(truth, undefined):
    found = gap_fraction_agreement(np.array([[0.1, 0.2]]), np.array(truth))
    assert {name for name, value in found.items() if math.isnan(value)} == undefined
    assert found["n"] == np.isfinite(truth).sum()
