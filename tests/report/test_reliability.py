import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from forestgaps_jax.report import reliability

SAMPLES = st.lists(
    st.tuples(st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans()),
    min_size=1,
    max_size=60,
)


def split(samples):
    probability, truth = zip(*samples, strict=True)
    return np.array(probability, np.float32), np.array(truth)


@given(SAMPLES)
def test_bins_are_those_of_scikit_learn(samples):
    probability, truth = split(samples)
    result = reliability(probability, truth)
    filled = result.pixels > 0
    share, mean = calibration_curve(truth, probability.astype(np.float64), n_bins=10)
    np.testing.assert_allclose(result.gap_share[filled], share)
    np.testing.assert_allclose(result.mean_probability[filled], mean, atol=1e-12)
    assert result.pixels.sum() == len(samples)
    assert np.isnan(result.gap_share[~filled]).all()


@given(SAMPLES)
def test_the_error_is_the_mean_distance_of_said_and_found_over_the_pixels(samples):
    probability, truth = split(samples)
    share, mean = calibration_curve(truth, probability.astype(np.float64), n_bins=10)
    edges = np.linspace(0, 1, 11)
    counts = np.histogram(
        np.ceil(np.searchsorted(edges[1:-1], probability.astype(np.float64))), np.arange(11)
    )[0]
    expected = np.sum(counts[counts > 0] * np.abs(share - mean)) / len(samples)
    assert reliability(probability, truth).expected_calibration_error == pytest.approx(expected, abs=1e-12)


@given(SAMPLES, SAMPLES)
def test_parts_add_up_to_the_whole(first, second):
    whole, summed = (
        reliability(*split(first + second)),
        reliability(*split(first)) + reliability(*split(second)),
    )
    np.testing.assert_array_equal(whole.pixels, summed.pixels)
    np.testing.assert_array_equal(whole.gaps, summed.gaps)
    np.testing.assert_allclose(whole.probability, summed.probability, atol=1e-9)


def test_what_is_not_valid_counts_nowhere_and_nothing_has_no_error():
    probability = np.array([[0.2, np.nan], [0.9, 0.4]], np.float32)
    truth, valid = np.array([[True, True], [True, False]]), np.array([[True, False], [True, True]])
    assert reliability(probability, truth, valid).pixels.sum() == 3
    assert np.isnan(reliability(probability, truth, np.zeros_like(valid)).expected_calibration_error)


@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="not from 0 to 1"):
        reliability(np.array([0.5, wrong]), np.array([True, False]))
