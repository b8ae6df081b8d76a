import json
import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from forestgaps_jax.data import read_dsm
from forestgaps_jax.inference import extract_gaps, fit_gap_sizes, fit_zeta, gap_statistics, gini

SIZES = np.array([1] * 60 + [2] * 22 + [3] * 9 + [4, 4, 5, 6, 8, 11, 17, 30, 90])


def log_likelihood(sizes, exponent, kmin, kmax=None):
    """By its definition: the sum of log P(k), the norm summed term by term where it ends."""
    norm = special.zeta(exponent, kmin) if kmax is None else (np.arange(kmin, kmax + 1.0) ** -exponent).sum()
    return sum(math.log(k**-exponent / norm) for k in sizes)


@pytest.mark.parametrize(("kmin", "kmax"), [(1, None), (2, None), (1, 100), (3, 40), (4, 12)])
def test_the_exponent_is_where_the_likelihood_is_highest(kmin, kmax):
    fit = fit_zeta(SIZES, kmin, kmax)
    sizes = [float(k) for k in SIZES if k >= kmin and (kmax is None or k <= kmax)]
    exponents = np.arange(0.5 if kmax else 1.01, 5, 0.01)
    best = exponents[np.argmax([log_likelihood(sizes, e, kmin, kmax) for e in exponents])]
    assert fit.exponent == pytest.approx(best, abs=0.0051)
    assert fit.n == len(sizes)
    low, middle, high = (log_likelihood(sizes, fit.exponent + step, kmin, kmax) for step in (-0.01, 0, 0.01))
    assert middle > max(low, high)
    assert fit.standard_error == pytest.approx(0.01 / math.sqrt(2 * middle - low - high), rel=0.01)


@pytest.mark.parametrize("exponent", [1.6, 2.0, 2.7])
def test_draws_of_scipy_give_their_exponent_back_within_the_error(exponent):
    fits = [
        fit_zeta(stats.zipf.rvs(exponent, size=2000, random_state=np.random.default_rng(seed)))
        for seed in range(40)
    ]
    scores = np.array([(fit.exponent - exponent) / fit.standard_error for fit in fits])
    # Of 40 standard normal deviates: mean 0 +- 0.16, standard deviation 1 +- 0.11; four of these.
    assert abs(scores.mean()) < 0.64
    assert 0.55 < scores.std() < 1.45


def test_a_cut_law_is_fitted_as_cut_even_below_1():
    k = np.arange(3, 200)
    for exponent in (0.5, 1.0, 1.8):
        p = k**-exponent
        draws = np.random.default_rng(1).choice(k, 20_000, p=p / p.sum())
        fit = fit_zeta(draws, kmin=3, kmax=199)
        assert fit.exponent == pytest.approx(exponent, abs=4 * fit.standard_error)
        assert fit.standard_error < 0.02


def test_small_gaps_that_were_removed_do_not_flatten_the_law():
    draws = stats.zipf.rvs(2.2, size=20_000, random_state=np.random.default_rng(0))
    large = draws[draws >= 5]
    fit = fit_zeta(large, kmin=5)
    assert fit.exponent == pytest.approx(2.2, abs=4 * fit.standard_error)
    assert fit_zeta(large).exponent < 1.6


def test_the_exponent_published_by_forestgapr(shared_data):
    """In a figure of its README (readme/Fig_3.png): lambda = 1.695, n = 131, of ALS_CHM_DUC, 1 to 1000 m2."""
    chm, grid = read_dsm(shared_data / "chm_only" / "ALS_CHM_DUC.tif")
    gaps = extract_gaps(chm, grid, threshold=10.0, inclusive=True, min_area=1, max_area=1000)
    fit = fit_gap_sizes(gaps)
    assert (round(fit.exponent, 3), fit.n, fit.kmin) == (1.695, 131, 1)


def test_what_the_law_expects_adds_up_to_the_gaps():
    fit, cut = fit_zeta(SIZES), fit_zeta(SIZES, 2, 50)
    assert fit.expected(np.array([1]))[0] == pytest.approx(len(SIZES) / special.zeta(fit.exponent))
    assert cut.expected(np.arange(1, 100)).sum() == pytest.approx(cut.n)
    assert not cut.expected(np.array([1, 51])).any()


@pytest.mark.parametrize(
    ("sizes", "kmin", "kmax"),
    [([], 1, None), ([1, 1, 1], 1, None), ([1, 2], 3, None), ([3, 3], 3, 9), ([9, 9], 3, 9)],
)
def test_sizes_that_say_nothing_have_no_exponent(sizes, kmin, kmax):
    fit = fit_zeta(np.array(sizes, int), kmin, kmax)
    assert math.isnan(fit.exponent)
    assert math.isnan(fit.standard_error)
    assert fit.n == sum(kmin <= k <= (kmax or 99) for k in sizes)


@pytest.mark.parametrize(
    ("sizes", "kmin", "kmax", "message"),
    [([0, 1], 1, None, "a gap of 0 pixels"), ([1], 0, None, "kmin = 0"), ([1], 5, 5, "kmin = 5, kmax = 5")],
)
def test_sizes_and_limits_that_cannot_be(sizes, kmin, kmax, message):
    with pytest.raises(ValueError, match=message):
        fit_zeta(np.array(sizes), kmin, kmax)


@pytest.mark.parametrize(("resolution", "min_area", "kmin"), [(0.5, 1.0, 4), (0.5, 1.1, 5), (0.3, 0.9, 10)])
def test_the_law_begins_where_the_gaps_do(resolution, min_area, kmin):
    mask = np.random.default_rng(0).uniform(size=(200, 200)) < 0.2
    gaps = extract_gaps(mask, resolution, min_area=min_area, max_area=30 * resolution**2)
    assert fit_gap_sizes(gaps) == fit_zeta(gaps.pixels, kmin)
    assert fit_gap_sizes(gaps, truncated=True) == fit_zeta(gaps.pixels, kmin, 30)
    with pytest.raises(ValueError, match="greatest size"):
        fit_gap_sizes(extract_gaps(mask, resolution), truncated=True)


def test_statistics_are_those_of_the_areas():
    rng = np.random.default_rng(8)
    mask, valid = rng.uniform(size=(90, 70)) < 0.25, rng.uniform(size=(90, 70)) < 0.95
    gaps = extract_gaps(mask, 2.0, valid=valid)
    found, area = gap_statistics(gaps), gaps.table["gap_area"]
    assert found["gaps"] == len(area)
    assert found["gap_fraction"] == pytest.approx((mask & valid).sum() / valid.sum())
    assert found["known_ha"] == pytest.approx(valid.sum() * 4 / 10_000)
    assert found["gaps_per_ha"] == pytest.approx(len(area) / (valid.sum() * 4 / 10_000))
    columns = ("area_min", "area_mean", "area_median", "area_max")
    expected = [function(area) for function in (np.min, np.mean, np.median, np.max)]
    assert [found[name] for name in columns] == pytest.approx(expected)
    differences = np.abs(np.subtract.outer(area, area)).mean()
    n = len(area)
    assert found["area_gini"] == pytest.approx(differences / (2 * area.mean()) * n / (n - 1))
    assert found["zeta_exponent"] == fit_zeta(gaps.pixels).exponent
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("valid", [True, False])
def test_a_site_without_gap_has_no_mean_gap(valid):
    mask = np.zeros((10, 10), bool)
    found = gap_statistics(extract_gaps(mask, 1.0, valid=np.full(mask.shape, valid)))
    assert (found["gaps"], found["gap_area"], found["known_ha"]) == (0, 0.0, 0.01 if valid else 0.0)
    ratios = [found["gap_fraction"], found["gaps_per_ha"]]
    assert ratios == ([0, 0] if valid else [pytest.approx(math.nan, nan_ok=True)] * 2)
    undefined = {name for name, value in found.items() if math.isnan(value)} - {"gap_fraction", "gaps_per_ha"}
    assert undefined == {
        *("area_min", "area_mean", "area_median", "area_max", "area_gini", "shape_index_mean"),
        *("zeta_exponent", "zeta_standard_error"),
    }


def test_gini_of_incomes_by_hand():
    assert gini(np.array([2.0, 2.0, 2.0])) == pytest.approx(0)
    assert gini(np.array([0.0, 0.0, 0.0, 5.0])) == pytest.approx(1)
    assert math.isnan(gini(np.array([3.0])))
    assert math.isnan(gini(np.zeros(4)))
    with pytest.raises(ValueError, match="not below 0"):
        gini(np.array([1.0, -1.0]))


def test_the_minimum_found_is_that_of_another_method():
    """The mean of log k is -zeta'(e) / zeta(e) there; zeta'(e) = -sum log(k) k ** -e, here with its tail."""
    last = 200_000.5
    k = np.arange(1, 200_001)

    def excess(e):
        tail = last ** (1 - e) * (np.log(last) / (e - 1) + 1 / (e - 1) ** 2)
        return np.log(SIZES).mean() - ((np.log(k) * k**-e).sum() + tail) / special.zeta(e)

    root = optimize.brentq(excess, 1.2, 5)
    assert fit_zeta(SIZES).exponent == pytest.approx(root, abs=1e-6)
