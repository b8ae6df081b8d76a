import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.loss import create_threshold_weights
from tests.loss.oracles import FEW

THREE = Config(thresholds=(5.0, 10.0, 20.0))


def weights_of(*shares, config=THREE):
    return np.array(
        list(create_threshold_weights(config, dict(zip(config.thresholds, shares, strict=True))).values())
    )


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.3, 1.0, math.nan])
def test_fault_06_equal_shares_weigh_one_each(share):
    np.testing.assert_allclose(weights_of(share, share, share), 1.0)


def test_fault_06_weights_are_inverse_shares_of_mean_one():
    inverse = 1 / np.array([0.1, 0.2, 0.4])
    np.testing.assert_allclose(weights_of(0.1, 0.2, 0.4), inverse / inverse.mean(), rtol=1e-12)


@FEW
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_fault_06_rarer_never_weighs_less_within_bounds_and_mean_one(shares):
    weights = weights_of(*shares)
    assert weights.mean() == pytest.approx(1)
    assert (np.diff(weights[np.argsort(shares)]) <= 1e-9).all()
    assert 0 < weights.max() <= 16 * weights.min() * (1 + 1e-9)


@FEW
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=8), st.data())
def test_fault_06_any_shares_and_adjustments_give_positive_weights_of_mean_one(shares, data):
    thresholds = tuple(range(1, len(shares) + 1))
    factors = data.draw(st.dictionaries(st.sampled_from(thresholds), st.floats(0.01, 100)))
    plain = weights_of(*shares, config=Config(thresholds=thresholds))
    config = Config(thresholds=thresholds, threshold_weight_adjustment=factors)
    adjusted = weights_of(*shares, config=config)
    unknown = np.isnan(shares)
    np.testing.assert_allclose(plain[unknown], 1)
    for weights in (plain, adjusted):
        assert (weights > 0).all()
        assert weights.mean() == pytest.approx(1)
    expected = plain * [factors.get(threshold, 1) for threshold in thresholds]
    np.testing.assert_allclose(adjusted, expected / expected.mean(), rtol=1e-9)


def test_fault_06_a_threshold_without_gaps_has_the_largest_weight_and_divides_by_nothing():
    # Geometric mean of 1/0.2 and 1/0.8 is 2.5; 4 times that is the bound.
    expected = np.array([10.0, 5.0, 1.25])
    np.testing.assert_allclose(weights_of(0.0, 0.2, 0.8), expected / expected.mean(), rtol=1e-12)


def test_fault_06_a_very_rare_threshold_is_held_at_four_times_the_geometric_mean():
    centre = (1e6 * 2 * 2) ** (1 / 3)
    expected = np.array([4 * centre, centre / 4, centre / 4])
    np.testing.assert_allclose(weights_of(1e-6, 0.5, 0.5), expected / expected.mean(), rtol=1e-9)


def test_a_threshold_that_was_not_seen_is_neutral():
    np.testing.assert_allclose(weights_of(0.1, math.nan, 0.3), [1.5, 1.0, 0.5], rtol=1e-12)


def test_metrics_of_an_evaluation_serve_as_they_are():
    config = Config(thresholds=(5.0, 10.0))
    stats = {5.0: {"gap_ratio": 0.1, "iou": 0.9}, 10.0: {"gap_ratio": 0.3}, 7.0: {"gap_ratio": 0.2}}
    assert create_threshold_weights(config, stats) == pytest.approx({5.0: 1.5, 10.0: 0.5})


def test_adjustment_multiplies_and_the_mean_is_one_again():
    config = Config(thresholds=(5.0, 10.0), threshold_weight_adjustment={10.0: 3.0})
    np.testing.assert_allclose(weights_of(0.4, 0.4, config=config), [0.5, 1.5])
    np.testing.assert_allclose(weights_of(0.1, 0.3, config=config), [1.0, 1.0])


def test_one_threshold_weighs_one():
    assert create_threshold_weights(Config(thresholds=(5.0,)), {5: 0.02}) == {5.0: 1.0}


def test_thresholds_without_share_are_named():
    with pytest.raises(ValueError, match=r"lack the thresholds \[10.0, 20.0\]"):
        create_threshold_weights(THREE, {5.0: 0.1})


@pytest.mark.parametrize("share", [-0.1, 1.1, math.inf])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=rf"below 5 m = {share}: must be from 0 to 1"):
        weights_of(share, 0.1, 0.1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [("0.2", TypeError, "must be a number"), ({"iou": 0.5}, ValueError, "no 'gap_ratio'")],
)
def test_a_share_that_is_no_number_is_refused(given, error, message, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as a user has it
    with pytest.raises(error, match=message):
        create_threshold_weights(Config(thresholds=(5.0,)), {5.0: given})


def test_an_adjustment_of_a_threshold_that_is_not_listed_is_refused():
    with pytest.raises(ValueError, match="7 m, which is not in thresholds"):
        create_threshold_weights(
            Config(thresholds=(5.0,), threshold_weight_adjustment={7.0: 2.0}), {5.0: 0.1}
        )
