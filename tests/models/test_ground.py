"""The network that predicts the ground, in cells."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from forestgaps_jax.config import Config
from forestgaps_jax.models import GroundUNet, create_model, create_model_from_config
from tests.models.networks import (
    DSM,
    THRESHOLD,
    Small,
    abstract,
    shape_of,
    small,
    with_head,
    without_plane,
)
from tests.models.test_cells import cells_by_loop, scipy_candidates

NAME = "unet_ground"
CANDIDATES = 1 + 2 * 4  # openings of 5, 9, 17, 33 and 65 px are of 3, 5, 9 and 17 cells
START_SCALE = np.log1p(np.exp(1.0)) + 0.05
HOLES = np.zeros(DSM.shape, bool)
HOLES[1, 3:13, 5:18] = True
thresholds = st.floats(0.25, 60.0, width=32)


def median_of(*arguments):
    return small(NAME).median_of(*arguments)


def logits_at(*heights):
    return small(NAME).logits(threshold=np.float32(heights), params=small(NAME).learnt)


# A distribution of canopy heights


@given(st.tuples(thresholds, thresholds).map(sorted))
def test_a_gap_at_one_threshold_is_one_at_every_higher_one(heights):
    low, high = heights
    below, above = logits_at(low, low), logits_at(high, high)
    assert (below < above).all() if high - low > 1e-2 else (below <= above).all()


@given(thresholds, thresholds)
def test_logits_are_those_of_a_logistic_distribution(one, other):
    """Straight in the threshold, 0 at the median, and steep at most as 1 over the smallest scale."""
    if abs(one - other) < 1.0:
        other = one + 1.0
    first, second = logits_at(one, one), logits_at(other, other)
    scale = (other - one) / (second - first)
    assert (scale >= 0.05 - 1e-3).all()
    expected = (one - median_of(small(NAME).learnt)) / scale
    np.testing.assert_allclose(expected, first, rtol=2e-3, atol=2e-3)


def test_without_a_threshold_it_gives_the_median_where_the_logit_is_0():
    median = median_of(small(NAME).learnt)
    assert (median.dtype, median.shape) == (np.float32, DSM.shape)
    for row, column in ((0, 0), (7, 11), (15, 23)):
        here = logits_at(*median[:, row, column, 0])
        np.testing.assert_allclose(here[:, row, column, 0], 0.0, atol=1e-4)


@given(st.lists(st.tuples(thresholds, thresholds), min_size=3, max_size=3))
def test_several_thresholds_of_a_sample_in_one_pass_are_as_one_at_a_time(heights):
    heights = np.float32(heights).T
    together = small(NAME).logits(threshold=heights, params=small(NAME).learnt)
    assert together.shape == (*DSM.shape[:3], 3)
    for number, column in enumerate(heights.T):
        np.testing.assert_allclose(together[..., [number]], logits_at(*column), rtol=1e-5, atol=1e-5)


# Surface minus ground


def doubled(x, axis):
    """Linear interpolation between the centres of cells, held beyond the outermost."""
    size = x.shape[axis]
    places = (np.arange(2 * size) + 0.5) / 2 - 0.5
    return np.apply_along_axis(lambda line: np.interp(places, np.arange(size), line), axis, x)


def above_candidates(dsm=DSM, windows=(3, 5, 9, 17)):
    """The surface above each candidate of the ground, its plane taken off; float64, by NumPy and SciPy."""
    flat = np.stack([without_plane(tile) for tile in dsm[..., 0]])[..., None]
    lowest, known, _ = cells_by_loop(flat, np.ones(flat.shape, bool))
    ground = scipy_candidates(lowest, known, windows)
    for axis in (1, 2, 1, 2):
        ground = doubled(ground, axis)
    return flat - ground


@pytest.mark.parametrize("candidate", range(CANDIDATES))
def test_the_median_is_the_surface_above_the_mixture_of_grounds_and_the_correction(candidate):
    params, above = small(NAME).learnt, above_candidates()
    shares, rest = np.zeros(CANDIDATES), [0.25, 0.0]
    even = median_of(with_head(params, [*shares, *rest]))
    np.testing.assert_allclose(even, above.mean(axis=-1, keepdims=True) - 2.5, atol=1e-3)
    shares[candidate] = 10.0
    one = median_of(with_head(params, [*shares, *rest]))
    np.testing.assert_allclose(one, above[..., candidate, None] - 2.5, atol=1e-3)


def test_the_scale_is_of_metres_and_the_same_whatever_the_threshold():
    for bias, scale in ((0.0, START_SCALE), (-0.5, np.log(2.0) + 0.05), (-20.0, 0.05)):
        params = with_head(small(NAME).params, [*np.zeros(CANDIDATES + 1), bias])
        logits = [small(NAME).logits(params=params, threshold=THRESHOLD + more) for more in (0, 3)]
        np.testing.assert_allclose(logits[1] - logits[0], 3.0 / scale, rtol=1e-3)


def test_the_unit_inside_the_network_does_not_show_in_the_heights():
    network = Small(NAME, height_scale=4.0)
    logits = network.logits(params=with_head(network.params, np.zeros(CANDIDATES + 2)))
    median = THRESHOLD[:, None, None, None] - START_SCALE * logits
    np.testing.assert_allclose(median, above_candidates().mean(axis=-1, keepdims=True), atol=1e-3)


def test_training_starts_near_the_even_mixture_of_the_candidates():
    median = THRESHOLD[:, None, None, None] - START_SCALE * small(NAME).step().logits
    expected = above_candidates().mean(axis=-1, keepdims=True)
    assert np.corrcoef(median.ravel(), expected.ravel())[0, 1] > 0.9
    assert np.mean(np.abs(median - expected)) < 0.3 * expected.mean()


slopes = st.integers(-12, 12).map(lambda quarters: quarters / 4)  # exact in float32, up to 72 degrees


@given(slopes, slopes, st.integers(-300, 4000))
def test_no_plane_below_the_canopy_reaches_its_height(south, east, elevation):
    plane = south * np.arange(16)[:, None, None] + east * np.arange(24)[None, :, None] + elevation
    holed = np.where(HOLES, np.float32(np.nan), DSM)
    flat, tilted = (median_of(small(NAME).params, dsm) for dsm in (holed, holed + plane.astype(np.float32)))
    np.testing.assert_allclose(tilted[~HOLES], flat[~HOLES], atol=2e-3)


# Unknown pixels


def test_unknown_pixels_have_a_median_too_and_move_no_other_sample():
    found = [
        median_of(small(NAME).learnt, np.where(HOLES, np.float32(fill), DSM)) for fill in (np.nan, np.inf)
    ]
    np.testing.assert_array_equal(*found)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[0][0], median_of(small(NAME).learnt)[0])


def test_a_tile_without_a_known_pixel_is_finite():
    dsm = DSM.copy()
    dsm[1] = np.nan
    assert np.isfinite(median_of(small(NAME).learnt, dsm)).all()


# Options


def test_it_needs_an_opening_and_always_steers():
    for windows in ((), []):
        with pytest.raises(ValueError, match="opening_windows is empty: unet_ground mixes openings"):
            create_model(NAME, rngs=nnx.Rngs(0), opening_windows=windows)
    with pytest.raises(ValueError, match="opening_windows is empty"):
        create_model_from_config(Config(model_name=NAME, opening_windows=()))
    with pytest.raises(TypeError, match="film"):
        create_model(NAME, rngs=nnx.Rngs(0), film=False)


@pytest.mark.parametrize(("windows", "openings"), [((3,), 1), ((3, 9), 1), ((5, 17), 2), ((5, 9, 17, 33), 3)])
def test_it_sees_and_mixes_two_candidates_for_each_opening_of_another_width_in_cells(windows, openings):
    network, mixed = abstract(NAME, opening_windows=windows), 1 + 2 * openings
    # The candidates, whether the cell is known, and its 16 pixels; then a correction and a scale.
    assert network.encoder[0].conv1.kernel.shape[2] == mixed + 1 + 16
    assert network.head.kernel.shape[-1] == mixed + 2
    assert shape_of(network, jnp.zeros((2, 16, 16, 1)), jnp.ones((2, 3))).shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("dsm", "threshold", "message"),
    [
        (np.zeros((2, 16, 24, 1)), None, "16 x 24 px: both must be multiples of 16"),
        (np.zeros((2, 16, 16, 1)), np.ones(3), r"threshold has shape \(3,\): must be \(2,\)"),
        (np.zeros((2, 1, 16, 16)), None, r"\(2, 1, 16, 16\).*transpose it by \(0, 2, 3, 1\)"),
        (np.zeros((2, 16, 16)), None, r"\(2, 16, 16\): must be \[batch, height, width, 1\]$"),
    ],
)
def test_inputs_that_do_not_fit_are_errors_that_say_so(dsm, threshold, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # as a user meets it
    try:
        with pytest.raises(ValueError, match=message):
            abstract(NAME)(jnp.asarray(dsm), None if threshold is None else jnp.asarray(threshold))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_it_may_be_as_flat_as_one_block():
    tile = jnp.zeros((2, 4, 12, 1))
    assert shape_of(abstract(NAME, depth=0), tile, jnp.ones(2)).shape == tile.shape


def test_it_is_a_network_of_gaps_and_names_its_class():
    config = Config(model_name=NAME)
    assert type(nnx.eval_shape(lambda: create_model_from_config(config))) is GroundUNet


def test_the_ground_beside_unknown_pixels_is_that_of_the_known_cells():
    """A bowl without trees: what the ground would be in the hole does not spoil the rim."""
    y, x = np.mgrid[:64, :64]
    bowl = (0.01 * ((y - 32.0) ** 2 + (x - 32.0) ** 2))[None, ..., None].astype(np.float32)
    holes = bowl.copy()
    holes[:, 20:44, 20:44] = np.nan
    network = create_model(NAME, rngs=nnx.Rngs(0), features=4, depth=1, detrend=False)
    only_the_lowest = [20.0, *np.zeros(network.outputs - 1)]
    network.head.kernel[...] = jnp.zeros_like(network.head.kernel[...])
    network.head.bias[...] = jnp.asarray(only_the_lowest, jnp.float32)
    whole, around = (np.asarray(network(jnp.asarray(dsm))) for dsm in (bowl, holes))
    # The slope beside the hole is 0.24 to 0.34 m a pixel, and a cell's middle 2 pixels from its rim.
    assert np.abs(whole - around)[np.isfinite(holes)].max() < 1.0
