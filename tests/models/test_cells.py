"""A tile in cells, and what the ground of each may be, against NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from forestgaps_jax.models.cells import ground_candidates, smooth, split_into_cells, windows_in_cells

SIDE, TILE, GRID = 4, (2, 12, 8, 1), (2, 11, 8, 1)
WINDOWS = (3, 5, 9)
split = jax.jit(split_into_cells, static_argnums=2)
candidates = jax.jit(ground_candidates, static_argnums=2)
smoothed = jax.jit(smooth, static_argnums=2)


def in_64ths(shape):
    """Heights whose differences are exact in float32."""
    whole = hnp.arrays(np.int32, shape, elements=st.integers(-640, 640))
    return whole.map(lambda values: (values / 64).astype(np.float32))


def rough(shape=GRID, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def some_known(shape=GRID, seed=1, share=0.7):
    return np.random.default_rng(seed).random(shape) < share


def zeroed(heights, known):
    return np.where(known, heights, np.float32(0))


# Cells


def cells_by_loop(heights, known):
    batch, height, width, _ = heights.shape
    rows, columns = height // SIDE, width // SIDE
    lowest, some = np.zeros((batch, rows, columns, 1)), np.zeros((batch, rows, columns, 1), bool)
    detail = np.zeros((batch, rows, columns, SIDE**2))
    for place in np.ndindex(batch, rows, columns):
        sample, row, column = place
        cell = np.s_[sample, SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1), 0]
        here = known[cell].ravel()
        if here.any():
            values = heights[cell].ravel().astype(np.float64)
            lowest[place], some[place] = values[here].min(), True
            detail[place][here] = values[here] - values[here].min()
    return lowest, some, detail


@given(in_64ths(TILE), hnp.arrays(bool, TILE))
def test_cells_are_those_of_a_loop_over_pixels(heights, known):
    known[0, :SIDE, SIDE:] = False
    found = split(jnp.asarray(heights), jnp.asarray(known), SIDE)
    for ours, expected in zip(found, cells_by_loop(heights, known), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert not np.asarray(found.known)[0, 0, 1]


def test_what_stands_in_unknown_pixels_of_a_cell_does_not_matter():
    known = some_known(TILE)
    found = [
        split(jnp.where(known, rough(TILE), hole), jnp.asarray(known), SIDE) for hole in (0.0, -99.0, np.nan)
    ]
    for other in found[1:]:
        for ours, expected in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_cells_of_one_pixel_are_the_tile():
    found = split(jnp.asarray(rough(TILE)), jnp.ones(TILE, bool), 1)
    np.testing.assert_array_equal(found.lowest, rough(TILE))
    np.testing.assert_array_equal(found.detail, np.zeros(TILE))


# Windows


@given(st.lists(st.integers(1, 60), min_size=1), st.sampled_from([2, 4, 8]))
def test_each_opening_reaches_as_far_in_cells_as_in_pixels_but_for_half_a_cell(reaches, side):
    found = windows_in_cells([2 * reach + 1 for reach in reaches], side)
    assert list(found) == sorted(set(found))
    near = [{w for w in found if abs(side * (w // 2) - reach) <= side / 2 or w == 3} for reach in reaches]
    assert all(near)
    assert set.union(*near) == set(found)
    assert all(window % 2 for window in found)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [((3,), (3,)), ((3, 9), (3,)), ((65, 5), (3, 17)), ((17, 17, 15), (5,)), ((13, 11), (3, 5))],
)
def test_each_window_reaches_a_cell_at_least_and_comes_once(windows, expected):
    assert windows_in_cells(windows, 4) == expected


# Candidates


def scipy_opening(heights, known, window):
    size = (1, window, window, 1)
    lowest = ndimage.minimum_filter(np.where(known, heights, np.inf), size, mode="constant", cval=np.inf)
    lowest[np.isinf(lowest)] = -np.inf
    opened = ndimage.maximum_filter(lowest, size, mode="constant", cval=-np.inf)
    return np.where(known, opened, 0.0)


def gaussian_mean(heights, known, deviation):
    """A sum over all pairs of cells."""
    _, rows, columns, _ = heights.shape
    y, x = (axis.ravel().astype(np.float64) for axis in np.indices((rows, columns)))
    distance = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    weight = np.exp(-distance / (2 * deviation**2)) * known.reshape(-1, 1, rows * columns)
    total = np.sum(weight * heights.reshape(-1, 1, rows * columns), axis=-1)
    return (total / weight.sum(axis=-1)).reshape(heights.shape)


def scipy_candidates(lowest, known, windows):
    lowest = lowest.astype(np.float64)
    opened = [scipy_opening(lowest, known, window) for window in windows]
    coarse = gaussian_mean(opened[-2] if len(windows) > 1 else opened[0], known, 4.0)
    followed = [scipy_opening(lowest - coarse, known, window) + coarse for window in windows]
    return np.where(known, np.concatenate([lowest, *opened, *followed], axis=-1), 0.0)


@pytest.mark.parametrize("windows", [(3,), (3, 7), WINDOWS, (3, 5, 33)])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.1])
def test_candidates_are_the_surface_and_its_openings_flat_and_on_the_coarse_ground(windows, share):
    """The coarse ground is the widest opening but one, or the only one, under a Gaussian."""
    known = some_known(share=share)
    lowest = zeroed(rough(), known)
    found = np.asarray(candidates(jnp.asarray(lowest), jnp.asarray(known), windows))
    assert found.shape == (*GRID[:3], 1 + 2 * len(windows))
    np.testing.assert_allclose(found, scipy_candidates(lowest, known, windows), atol=1e-5)


@given(in_64ths(GRID), hnp.arrays(bool, GRID))
def test_no_candidate_is_above_the_surface_and_all_are_finite(heights, known):
    lowest = zeroed(heights, known)
    found = np.asarray(candidates(jnp.asarray(lowest), jnp.asarray(known), WINDOWS))
    assert np.isfinite(found).all()
    assert (found <= lowest + 1e-4).all()
    assert not found[~known[..., 0]].any()


def test_a_tile_without_a_known_cell_has_candidates_of_0():
    nothing = jnp.zeros(GRID)
    assert not np.asarray(candidates(nothing, jnp.zeros(GRID, bool), WINDOWS)).any()


def test_on_a_slope_with_trees_the_candidates_that_follow_it_are_nearer_to_the_ground():
    shape, rng = (1, 32, 32, 1), np.random.default_rng(3)
    plane = (0.8 * np.arange(32)[:, None] - 0.3 * np.arange(32)).reshape(shape).astype(np.float32)
    trees = 2.0 * (rng.random(shape) < 0.4)
    found = np.asarray(candidates(jnp.asarray(plane + trees, jnp.float32), jnp.ones(shape, bool), WINDOWS))
    off = np.abs(found - plane).mean(axis=(0, 1, 2))[1:].reshape(2, len(WINDOWS))
    flat, followed = off
    assert (followed < flat).all()
    assert followed.max() < 0.5 * flat.max()


# Smoothing


@pytest.mark.parametrize("deviation", [0.5, 4.0])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_smoothing_is_the_weighted_mean_of_known_cells(deviation, share):
    known = some_known(share=share)
    known[:, 0, 0] = True
    heights = zeroed(rough(), known)
    found = np.asarray(smoothed(jnp.asarray(heights), jnp.asarray(known), deviation))
    np.testing.assert_allclose(found[known], gaussian_mean(heights, known, deviation)[known], atol=1e-5)


def test_smoothing_keeps_a_plain_up_to_edges_and_unknown_cells():
    known = some_known()
    found = np.asarray(smoothed(jnp.asarray(zeroed(np.full(GRID, 3.5), known)), jnp.asarray(known), 4.0))
    np.testing.assert_allclose(found, 3.5, rtol=1e-6)
