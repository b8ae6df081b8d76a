"""The network that predicts a distribution of canopy heights."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from forestgaps_jax.config import Config
from forestgaps_jax.layers import Norm
from forestgaps_jax.models import DistributionUNet, create_model, create_model_from_config
from forestgaps_jax.models.network import OPENING_WINDOWS
from tests.models.networks import (
    DSM,
    RESOLUTION,
    THRESHOLD,
    Small,
    abstract,
    shape_of,
    small,
    with_head,
    without_plane,
)

NAME = "unet_distribution"
thresholds = st.floats(0.25, 60.0, width=32)


def median_of(*arguments):
    return small(NAME).median_of(*arguments)


def logits_at(*heights):
    return small(NAME).logits(threshold=np.float32(heights), params=small(NAME).learnt)


@given(st.tuples(thresholds, thresholds).map(sorted))
def test_a_gap_at_one_threshold_is_one_at_every_higher_one(heights):
    low, high = heights
    below, above = logits_at(low, low), logits_at(high, high)
    assert (below < above).all() if high - low > 1e-3 else (below <= above).all()


def test_several_thresholds_of_a_sample_in_one_pass_are_as_one_at_a_time():
    heights = np.float32([[2.0, 12.5, 7.0], [30.0, 5.0, 0.5]])
    together = small(NAME).logits(threshold=heights, params=small(NAME).learnt)
    assert together.shape == (*DSM.shape[:3], 3)
    for number, column in enumerate(heights.T):
        np.testing.assert_allclose(together[..., [number]], logits_at(*column), rtol=1e-5, atol=1e-5)


@given(thresholds, thresholds)
def test_logits_are_those_of_a_logistic_distribution(one, other):
    """Straight in the threshold, 0 at the median, and steep at most as 1 over the smallest scale."""
    if abs(one - other) < 1.0:
        other = one + 1.0
    first, second = logits_at(one, one), logits_at(other, other)
    scale = (other - one) / (second - first)
    median = median_of(small(NAME).learnt)
    assert (scale >= 0.05 - 1e-4).all()
    np.testing.assert_allclose((one - median) / scale, first, rtol=2e-3, atol=2e-3)


def test_without_a_threshold_it_gives_the_median_where_the_logit_is_0():
    median = median_of(small(NAME).learnt)
    assert median.dtype == np.float32
    for row, column in ((0, 0), (7, 11), (15, 23)):
        here = logits_at(*median[:, row, column, 0])
        np.testing.assert_allclose(here[:, row, column, 0], 0.0, atol=1e-4)


def test_the_size_of_a_pixel_steers_the_median_once_film_has_moved():
    network = small(NAME)
    other = np.float32([2.0, 0.25])
    at_start = [median_of(network.params, DSM, resolution) for resolution in (RESOLUTION, other)]
    np.testing.assert_array_equal(*at_start)
    fine, finer = (median_of(network.learnt, DSM, pixels) for pixels in (RESOLUTION, other))
    np.testing.assert_array_equal(fine[0], finer[0])
    assert np.abs(fine[1] - finer[1]).max() > 1e-2


def above_openings(dsm=DSM):
    """The surface above each opening, its plane taken off; float64, by NumPy and SciPy."""
    found = []
    for flat in map(without_plane, dsm[..., 0]):
        lowest = [ndimage.minimum_filter(flat, w, mode="constant", cval=np.inf) for w in OPENING_WINDOWS]
        opened = [
            ndimage.maximum_filter(low, w, mode="constant", cval=-np.inf)
            for low, w in zip(lowest, OPENING_WINDOWS, strict=True)
        ]
        found.append(flat[..., None] - np.stack(opened, axis=-1))
    return np.stack(found)


@pytest.mark.parametrize("window", range(len(OPENING_WINDOWS)))
def test_the_median_is_the_mixture_of_heights_above_openings_and_the_correction(window):
    params, above = small(NAME).learnt, above_openings()
    shares, rest = np.zeros(len(OPENING_WINDOWS)), [0.25, 0.0]
    even = median_of(with_head(params, [*shares, *rest]))
    np.testing.assert_allclose(even, above.mean(axis=-1, keepdims=True) + 2.5, atol=1e-3)
    shares[window] = 10.0
    one = median_of(with_head(params, [*shares, *rest]))
    np.testing.assert_allclose(one, above[..., window, None] + 2.5, atol=1e-3)


def test_the_unit_inside_the_network_does_not_show_in_the_heights():
    network = Small(NAME, height_scale=4.0)
    params = with_head(network.params, np.zeros(len(OPENING_WINDOWS) + 2))
    logits = network.logits(params=params)
    scale = np.log1p(np.exp(1.0)) + 0.05
    median = THRESHOLD[:, None, None, None] - scale * logits
    np.testing.assert_allclose(median, above_openings().mean(axis=-1, keepdims=True), atol=1e-3)


def test_training_starts_near_the_mean_of_the_heights_above_the_openings():
    scale = np.log1p(np.exp(1.0)) + 0.05
    median = THRESHOLD[:, None, None, None] - scale * small(NAME).step().logits
    expected = above_openings().mean(axis=-1, keepdims=True)
    assert np.corrcoef(median.ravel(), expected.ravel())[0, 1] > 0.9
    assert np.mean(np.abs(median - expected)) < 0.5 * expected.mean()


def test_unknown_pixels_have_a_median_too_and_move_no_other_sample():
    holes = DSM.copy()
    holes[1, 4:9, 3:7] = np.nan
    plain, with_holes = (median_of(small(NAME).learnt, dsm) for dsm in (DSM, holes))
    assert np.isfinite(with_holes).all()
    np.testing.assert_array_equal(with_holes[0], plain[0])


# Options


def test_it_needs_an_opening():
    for windows in ((), []):
        with pytest.raises(ValueError, match="opening_windows is empty: unet_distribution mixes openings"):
            create_model(NAME, rngs=nnx.Rngs(0), opening_windows=windows)
    with pytest.raises(ValueError, match="opening_windows is empty"):
        create_model_from_config(Config(model_name=NAME, opening_windows=()))
    with pytest.raises(TypeError, match="film"):
        create_model(NAME, rngs=nnx.Rngs(0), film=False)


@pytest.mark.parametrize("windows", [(3,), (3, 5, 9)])
def test_its_head_gives_a_share_for_each_opening_a_correction_and_a_scale(windows):
    network = abstract(NAME, opening_windows=windows)
    assert network.outputs == network.head.kernel.shape[-1] == len(windows) + 2
    assert shape_of(network, jnp.zeros((2, 8, 8, 1)), jnp.ones(2)).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("dsm", "threshold", "message"),
    [
        (DSM, np.ones(3, np.float32), r"threshold has shape \(3,\): must be \(2,\)"),
        (DSM, np.ones((2, 0), np.float32), r"threshold has shape \(2, 0\): must be \(2,\)"),
        (DSM.transpose(0, 3, 1, 2), THRESHOLD, r"\(2, 1, 16, 24\).*transpose it by \(0, 2, 3, 1\)"),
        (DSM.transpose(0, 3, 1, 2), None, r"\(2, 1, 16, 24\).*transpose it by \(0, 2, 3, 1\)"),
        (DSM[..., 0], None, r"\(2, 16, 24\): must be \[batch, height, width, 1\]$"),
    ],
)
def test_inputs_that_do_not_fit_are_errors_that_say_so(dsm, threshold, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # as a user meets it
    try:
        with pytest.raises(ValueError, match=message):
            abstract(NAME)(jnp.asarray(dsm), None if threshold is None else jnp.asarray(threshold))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_it_trains_with_group_and_spectral_norms_and_stochastic_depth():
    network = Small(NAME, norm="group", spectral_norm=True)
    step = network.step(rate=0.5)
    assert np.isfinite(step.loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((step.gradients, step.rest)))
    graph = nnx.merge(network.graph, network.params, network.rest)
    assert {part.kind for _, part in nnx.iter_modules(graph) if isinstance(part, Norm)} == {"group"}


def test_it_may_be_as_flat_as_one_block():
    tile = jnp.zeros((2, 5, 7, 1))
    assert shape_of(abstract(NAME, depth=0), tile, jnp.ones(2)).shape == tile.shape


def test_rematerialisation_and_half_precision_give_about_the_same():
    plain = small(NAME).step()
    again = Small(NAME, remat=True).step()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * max(1.0, float(np.abs(a).max())))
    half = Small(NAME, precision="bfloat16").step()
    assert half.logits.dtype == np.float32
    assert np.abs(half.logits - plain.logits).mean() < 0.05 * np.abs(plain.logits).std()


def test_it_is_a_network_of_gaps_and_names_its_class():
    assert type(nnx.eval_shape(lambda: create_model_from_config(Config(model_name=NAME)))) is DistributionUNet
