"""Windows of any size over rasters of any shape: blended rows against what is known of them in NumPy."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config
from forestgaps_jax.inference import predict_array, sliding_window_inference
from forestgaps_jax.inference.sliding_window import blended_rows
from forestgaps_jax.inference.strips import predicted_strips
from forestgaps_jax.inference.windows import Windows, count_windows, lay_windows
from forestgaps_jax.state import init_state

SEEDS, SIDES = st.integers(0, 2**32 - 1), st.integers(1, 60)
WINDOWS = st.builds(
    Windows, tile_size=st.integers(1, 20), overlap=st.floats(0, 0.9), batch_size=st.integers(1, 9)
)
HOLES = st.sampled_from([0.0, 0.1, 0.9, 1.0])


def image(seed, shape, holes):
    """Heights, some of them unknown: single pixels, and rectangles larger than windows."""
    rng = np.random.default_rng(seed)
    heights = rng.uniform(-50, 4000, shape).astype(np.float32)
    heights[rng.random(shape) < holes * rng.random()] = rng.choice([np.nan, np.inf, -np.inf])
    if holes:
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side + 1, 2)) for side in shape[:2])
        heights[top:bottom, left:right] = np.nan
    return heights


class Reader:
    """Gives rows, each once and in order."""

    def __init__(self, pixels):
        self.pixels, self.read_to = pixels, 0

    def __call__(self, first, last):
        assert first == self.read_to < last or first == last == self.read_to
        self.read_to = last
        return self.pixels[first:last]


def blended(predict, pixels, windows, bands):
    """The maps of all rows, put together; rows come once, from the top to the bottom."""
    reader, advanced, image_rows, maps = Reader(pixels), [], [], []
    for rows in blended_rows(predict, reader, pixels.shape, bands, windows, advanced.append):
        assert rows.first == sum(map(len, image_rows))
        image_rows.append(rows.image)
        maps.append(rows.maps)
    np.testing.assert_array_equal(np.concatenate(image_rows), pixels)
    assert reader.read_to == len(pixels)
    assert sum(advanced) == count_windows(pixels.shape[:2], windows)
    return np.concatenate(maps, axis=1)


@settings(max_examples=60)
@given(SEEDS, SIDES, SIDES, st.integers(1, 3), HOLES, WINDOWS)
@example(0, 1, 1, 1, 0.0, Windows(1, 0.0, 1))
def test_a_network_that_gives_what_it_sees_gives_the_raster(seed, height, width, channels, holes, windows):
    pixels, shapes = image(seed, (height, width, channels), holes), set()

    def predict(batch):
        shapes.add(batch.shape)
        seen = np.isfinite(batch).any(axis=(1, 2, 3))
        # Windows in which nothing is known only fill a batch up.
        assert seen[0]
        assert (np.diff(seen.astype(int)) <= 0).all()
        return np.moveaxis(np.nan_to_num(batch, posinf=0.0, neginf=0.0), -1, 1)

    found = np.moveaxis(blended(predict, pixels, windows, channels), 0, -1)
    known = np.isfinite(pixels).all(axis=-1)
    np.testing.assert_allclose(found[known], pixels[known], rtol=1e-6)
    assert np.isnan(found[~known]).all()
    assert len(shapes) <= 1


@settings(max_examples=40)
@given(SEEDS, SIDES, SIDES, WINDOWS)
def test_a_blend_is_the_mean_of_its_windows_weighted_as_hanns_window(seed, height, width, windows):
    size, rng = windows.tile_size, np.random.default_rng(seed)
    rows, columns = (lay_windows(side, size, windows.overlap).starts for side in (height, width))
    answers = rng.uniform(-1, 1, (len(rows) * len(columns), 2, size, size))
    given = iter(answers)  # windows are asked for row by row

    def predict(batch):
        known = np.isfinite(batch).any(axis=(1, 2, 3))
        return np.stack([next(given) if one else np.full((2, size, size), np.nan) for one in known])

    found = blended(predict, np.zeros((height, width, 1), np.float32), windows, 2)
    hann = np.outer(*[np.hanning(2 * size + 1)[1::2]] * 2)  # at the middles of the pixels
    shape = max(height, size), max(width, size)
    total, weights = np.zeros((2, *shape)), np.zeros(shape)
    lowest, highest = np.full((2, *shape), np.inf), np.full((2, *shape), -np.inf)
    for answer, (row, column) in zip(answers, ((r, c) for r in rows for c in columns), strict=True):
        window = np.s_[..., row : row + size, column : column + size]
        total[window] += hann * answer
        weights[window] += hann
        lowest[window] = np.minimum(lowest[window], answer)
        highest[window] = np.maximum(highest[window], answer)
    crop = np.s_[:, :height, :width]
    np.testing.assert_allclose(found, (total / weights)[crop], atol=1e-6)
    # So no seam can stand out from the windows that meet there.
    assert (found >= lowest[crop] - 1e-6).all()
    assert (found <= highest[crop] + 1e-6).all()


# Compiled, through the public functions

TILE = 8


def same(params, windows):
    return windows


@settings(max_examples=15)
@given(SEEDS, SIDES, SIDES, HOLES, st.floats(0, 0.9))
def test_the_raster_comes_back_through_a_compiled_network(seed, height, width, holes, overlap):
    pixels = image(seed, (height, width, 1), holes)
    options = {"tile_size": TILE, "overlap": overlap, "batch_size": 1, "fill": -7.0}
    found, known = sliding_window_inference(same, None, pixels, **options), np.isfinite(pixels)
    np.testing.assert_allclose(found[known], pixels[known], rtol=1e-6)
    assert np.isnan(found[~known]).all()


@dataclass(frozen=True)
class Share:
    """A network whose probability at a pixel is a share that its surface and the threshold give."""

    def __call__(self, params, model_state, dsm, threshold, rngs=None, train=False):
        p = jnp.nan_to_num(dsm) * threshold[:, None, None, None] / 30
        return jnp.log(p) - jnp.log1p(-p), model_state


SHARE = init_state(Share(), {"none": jnp.zeros(())}, Config())


@pytest.mark.parametrize("flips", [False, True])
@settings(max_examples=8)
@given(SEEDS, SIDES, SIDES, st.sampled_from([0.0, 0.3]), st.floats(0, 0.9))
def test_strips_hold_the_probability_of_each_pixel_and_threshold(flips, seed, height, width, holes, overlap):
    rng, thresholds = np.random.default_rng(seed), np.float32([5.0, 12.0, 29.0])
    dsm = rng.uniform(0.02, 0.98, (height, width)).astype(np.float32)
    dsm[rng.random(dsm.shape) < holes] = np.nan
    windows, reader = Windows(TILE, overlap, 1, flips), Reader(dsm)
    strips = list(predicted_strips(SHARE, reader, dsm.shape, thresholds, windows))
    assert [strip.first_row for strip in strips] == np.cumsum(
        [0, *(len(s.dsm) for s in strips[:-1])]
    ).tolist()
    np.testing.assert_array_equal(np.concatenate([strip.dsm for strip in strips]), dsm)
    assert all(strip.deviation is None for strip in strips)
    found = np.concatenate([strip.probability for strip in strips], axis=1)
    np.testing.assert_allclose(found, dsm * thresholds[:, None, None] / 30, atol=1e-5)
    order = rng.permutation(3)
    options = {"tile_size": TILE, "overlap": overlap, "batch_size": 1, "flips": flips}
    np.testing.assert_array_equal(
        predict_array(SHARE, dsm, thresholds[order].tolist(), **options), found[order]
    )
