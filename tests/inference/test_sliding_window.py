"""Whole rasters through windows: what is blended, what is computed, what is refused."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from forestgaps_jax import Config, create_model, create_state, predict
from forestgaps_jax.data import virtual_forest
from forestgaps_jax.inference import predict_array, predict_deviation, sliding_window_inference
from forestgaps_jax.inference.passes import predict_windows, random_pass
from forestgaps_jax.inference.strips import predicted_strips
from forestgaps_jax.inference.windows import Windows, count_windows, lay_windows
from forestgaps_jax.state import TrainState, init_state

TILE = 16


@dataclass(frozen=True, eq=False)
class PixelByPixel:
    """A network whose probability at a pixel is known: ``of(dsm, threshold)``, with 0 where dsm is unknown.

    It notes the shape of each trace.
    """

    of: object
    traces: list

    def __call__(self, params, model_state, dsm, threshold, rngs=None, train=False):
        self.traces.append(dsm.shape)
        probability = self.of(jnp.nan_to_num(dsm), threshold[:, None, None, None])
        return jnp.log(probability) - jnp.log1p(-probability), model_state


def known_network(of) -> TrainState:
    return init_state(PixelByPixel(of, []), {"none": jnp.zeros(())}, Config())


IDENTITY = known_network(lambda dsm, threshold: dsm)


def surface(shape, seed=0, holes=0.1):
    rng = np.random.default_rng(seed)
    dsm = rng.uniform(0.02, 0.98, shape).astype(np.float32)
    dsm[rng.uniform(size=shape) < holes] = np.nan
    return dsm


@pytest.fixture(scope="module")
def network() -> TrainState:
    options = {"features": 4, "depth": 1, "opening_windows": (), "detrend": False}
    return create_state(create_model("unet_film", rngs=nnx.Rngs(0), **options), Config())


@pytest.fixture(scope="module")
def dsm():
    return virtual_forest(3, (40, 53), slope=20.0).dsm


# Cutting


@given(st.integers(1, 400), st.integers(1, 40), st.floats(0, 0.95))
@settings(max_examples=200)
def test_windows_cover_a_side_evenly_and_their_weights_add_up_to_1(length, tile, overlap):
    starts, weights = lay_windows(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= max(1, np.floor(tile * (1 - overlap) + 1e-6)) for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1
    total = np.zeros(max(length, tile))
    for start, weight in zip(starts, weights, strict=True):
        assert (weight > 0).all()
        total[start : start + tile] += weight
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


@pytest.mark.parametrize(("overlap", "step"), [(0.0, 10), (0.5, 5), (0.7, 3), (0.9, 1), (0.99, 1)])
def test_overlap_is_the_share_that_is_repeated(overlap, step):
    assert np.diff(lay_windows(110, 10, overlap).starts).max() == step


def test_count_of_windows_is_what_is_advanced():
    windows, advanced = Windows(TILE, 0.25, 4), []
    strips = predicted_strips(
        IDENTITY,
        lambda first, last: surface((50, 70))[first:last],
        (50, 70),
        np.array([5.0], np.float32),
        windows,
        None,
        advanced.append,
    )
    assert sum(len(strip.dsm) for strip in strips) == 50
    assert sum(advanced) == count_windows((50, 70), windows)


# Blending


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(77, 101), (5, 9), (16, 16), (17, 3), (64, 31), (1, 1)])
def test_what_comes_out_is_what_went_in(shape, overlap):
    dsm = surface(shape, holes=0.1 if shape != (1, 1) else 0.0)
    got = predict_array(IDENTITY, dsm, [5.0], tile_size=TILE, overlap=overlap)
    assert got.shape == (1, *shape)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0], dsm, atol=1e-6)


def test_holes_larger_than_windows_stay_and_the_windows_in_them_are_not_computed():
    dsm = surface((64, 64), holes=0.0)
    dsm[:48, 16:] = np.inf
    dsm[0, 0] = -np.inf
    got = predict_array(IDENTITY, dsm, [5.0], tile_size=TILE, batch_size=1)[0]
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(dsm))
    known = np.isfinite(dsm)
    np.testing.assert_allclose(got[known], dsm[known], atol=1e-6)
    seen = []

    def predict_nothing(*arguments, **options):
        seen.append(arguments[1])
        return predict_windows(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forestgaps_jax.inference.strips.predict_windows", predict_nothing)
        predict_array(IDENTITY, dsm, [5.0], tile_size=TILE, overlap=0.0, batch_size=1)
    assert len(seen) == 4 + 3  # of 16: the left column and the lowest row
    assert all(np.isfinite(tile).any() for tile in seen)


def test_a_raster_of_no_known_pixel_is_nan():
    got = predict_array(IDENTITY, np.full((20, 20), np.nan), [5.0], tile_size=TILE)
    assert np.isnan(got).all()


def test_masked_pixels_are_not_known():
    dsm = np.ma.masked_array(np.full((20, 20), 0.5, np.float32), np.eye(20, dtype=bool))
    dsm.data[np.eye(20, dtype=bool)] = -9999.0
    got = predict_array(IDENTITY, dsm, [5.0], tile_size=TILE)[0]
    np.testing.assert_allclose(got, np.where(np.eye(20), np.nan, 0.5), atol=1e-6)


def test_blend_is_the_weighted_mean_of_the_windows_probabilities(network, dsm):
    tile, thresholds = 16, (5.0, 12.0)
    total, weights = np.zeros((2, *dsm.shape)), np.zeros(dsm.shape)
    hann = np.hanning(2 * tile + 1)[1::2]  # at the middles of the pixels
    rows, columns = ([0, 8, 16, 24], [0, 7, 15, 22, 30, 37])  # 40 and 53 pixels, at most 8 apart
    for row in rows:
        for column in columns:
            window = np.s_[row : row + tile, column : column + tile]
            for band, threshold in enumerate(thresholds):
                part = np.asarray(predict(network, dsm[window][None], threshold))[0, ..., 0]
                total[band][window] += np.outer(hann, hann) * part
            weights[window] += np.outer(hann, hann)
    expected = np.maximum.accumulate(total / weights, axis=0)
    got = predict_array(network, dsm, thresholds, tile_size=tile)
    # The maximum over thresholds is taken in each window, so that it can be above that of the means.
    assert (got >= expected - 1e-5).all()
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)


# Thresholds


def test_a_gap_below_a_threshold_is_one_below_all_higher_in_the_order_given():
    # A network that has it the wrong way round.
    falling = known_network(lambda dsm, threshold: dsm / threshold)
    dsm, given_order = surface((20, 33)), [10.0, 2.0, 5.0]
    got = predict_array(falling, dsm, given_order, tile_size=TILE)
    rising = known_network(lambda dsm, threshold: dsm * threshold / 20)
    np.testing.assert_allclose(got, np.stack([dsm / 2] * 3), atol=1e-6)
    got = predict_array(rising, dsm, given_order, tile_size=TILE)
    np.testing.assert_allclose(got, np.stack([dsm * t / 20 for t in given_order]), atol=1e-6)


def test_all_thresholds_and_windows_share_one_compiled_function():
    apply = PixelByPixel(lambda dsm, threshold: dsm * threshold / 20, [])
    state = init_state(apply, {"none": jnp.zeros(())}, Config())
    for seed, thresholds in ((0, [5.0, 10.0]), (1, [12.0, 3.0])):
        predict_array(state, surface((70, 45 + seed), seed), thresholds, tile_size=TILE, batch_size=4)
    assert apply.traces == [(4, TILE, TILE, 1)] * 2  # one for each threshold, in one trace


def test_what_does_not_depend_on_the_threshold_is_computed_once():
    def operations(name, count):
        options = {"features": 8, "depth": 1, "opening_windows": (), "detrend": False}
        state = create_state(create_model(name, rngs=nnx.Rngs(0), **options), Config())
        tiles, thresholds = jnp.zeros((1, 32, 32, 1)), jnp.arange(1.0, count + 1)
        compiled = predict_windows.lower(state, tiles, thresholds, None, state.rng).compile()
        return compiled.cost_analysis()["flops"]

    assert operations("unet_regression", 4) < 1.1 * operations("unet_regression", 1)
    assert operations("unet_film", 4) > 3 * operations("unet_film", 1)  # steered from its first layer on


# Pixel size


class Told(nnx.Module):
    def __call__(self, dsm, threshold, rngs=None, train=False, resolution=None):
        return jnp.zeros_like(dsm) + resolution[:, None, None, None]


def test_the_pixel_size_reaches_networks_that_are_told_it(network, dsm):
    got = predict_array(create_state(Told(), Config()), dsm, [5.0], resolution=0.5, tile_size=TILE)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-0.5)), rtol=1e-6)
    whole = predict_array(IDENTITY, surface((8, 8)), [5.0], resolution=2.0, tile_size=TILE)
    np.testing.assert_allclose(whole[0], surface((8, 8)), atol=1e-6)


# Symmetries


def test_flips_are_the_mean_over_the_8_symmetries_of_the_square(network, dsm):
    tile = dsm[:16, :16]
    expected = np.zeros((16, 16))
    for turns in range(4):
        for mirror in (False, True):
            seen = np.rot90(tile[:, ::-1] if mirror else tile, turns)
            part = np.rot90(np.asarray(predict(network, seen[None].copy(), 7.0))[0, ..., 0], -turns)
            expected += (part[:, ::-1] if mirror else part) / 8
    got = predict_array(network, tile, [7.0], tile_size=16, flips=True)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    plain = predict_array(network, tile, [7.0], tile_size=16)[0]
    assert np.abs(plain - expected).max() > 1e-3


# Random passes


class Coins(nnx.Module):
    """Each pixel of each pass is sigmoid(0) or sigmoid(threshold / 5), with the same chance."""

    def __init__(self):
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, dsm, threshold, rngs=None, train=False):
        tossed = self.dropout(jnp.ones_like(dsm), deterministic=not train, rngs=rngs)  # 0 or 2
        return tossed * threshold[:, None, None, None] / 10


def test_deviation_is_the_standard_deviation_over_passes():
    state, dsm, thresholds = create_state(Coins(), Config()), surface((30, 16)), [15.0, 5.0]
    got = predict_deviation(state, dsm, thresholds, samples=400, tile_size=TILE)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(np.stack([dsm] * 2)))
    for band, threshold in zip(got, thresholds, strict=True):
        heads = 1 / (1 + np.exp(-threshold / 5))
        assert np.nanmean(band) == pytest.approx((heads - 0.5) / 2, rel=0.01)
        assert np.nanstd(band) < 0.01
    again = predict_deviation(state, dsm, thresholds, samples=400, tile_size=TILE)
    np.testing.assert_array_equal(got, again)
    # What is predicted is the whole network's, without the coins.
    whole = predict_array(state, dsm, thresholds, tile_size=TILE)
    np.testing.assert_allclose(whole[0][~np.isnan(dsm)], 1 / (1 + np.exp(-1.5)), rtol=1e-6)


def test_random_passes_keep_the_running_statistics(dsm):
    """With a chance too small to occur a pass is the deterministic one, whatever else is in the batch."""
    options = {"features": 4, "depth": 1, "opening_windows": (), "detrend": False, "drop_path_rate": 1e-9}
    state = create_state(create_model("unet_film", rngs=nnx.Rngs(0), **options), Config())
    deviation = predict_deviation(state, dsm, [5.0], samples=2, tile_size=TILE)
    assert deviation.max() < 1e-6
    tiles, threshold, key = jnp.asarray(dsm[None, :16, :16, None]), jnp.array([5.0]), jax.random.key(0)
    running = jax.jit(state.apply)(state.params, state.model_state, tiles, threshold)[0]
    passed = jax.jit(random_pass)(state, tiles, threshold, key)
    np.testing.assert_allclose(passed, running, atol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dsm": np.zeros((1, 8, 8))}, r"dsm has shape \(1, 8, 8\): must be \[height, width\]"),
        ({"dsm": np.zeros((0, 8))}, r"must be \[height, width\]"),
        ({"thresholds": []}, "must be one or more heights"),
        ({"thresholds": [5.0, -1.0]}, "above 0"),
        ({"thresholds": [5.0, np.nan]}, "above 0"),
        ({"thresholds": [5.0, 10.0, 5.0]}, "one is there twice"),
        ({"tile_size": 0}, "tile_size = 0: must be 1 or more"),
        ({"tile_size": 15}, "multiples of 2"),
        ({"overlap": 1.0}, "overlap = 1.0: must be from 0 to below 1"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_refused(network, change, message):
    arguments = {"dsm": np.zeros((20, 20), np.float32), "thresholds": [5.0], "tile_size": 16, **change}
    dsm, thresholds = arguments.pop("dsm"), arguments.pop("thresholds")
    with pytest.raises(ValueError, match=message):
        predict_array(network, dsm, thresholds, **arguments)


def test_random_passes_need_something_random(network, dsm):
    with pytest.raises(ValueError, match="nothing in this network is random: train one with use_droppath"):
        predict_deviation(network, dsm, [5.0], tile_size=16)
    with pytest.raises(ValueError, match="samples = 1: must be 2 or more"):
        predict_deviation(network, dsm, [5.0], samples=1, tile_size=16)
    with pytest.raises(ValueError, match="needs a Flax NNX network"):
        predict_deviation(IDENTITY, dsm, [5.0], tile_size=16)


# Any network, any number of classes


def identity(params, windows):
    """Every channel as it is, and their sum."""
    return params["factor"] * jnp.concatenate([windows, windows.sum(axis=-1, keepdims=True)], axis=-1)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 3), st.floats(0, 0.9))
@settings(max_examples=20)
def test_any_network_any_image_any_number_of_classes(height, width, channels, overlap):
    image = np.stack([surface((height, width), seed, holes=0.0) for seed in range(channels)], axis=-1)
    options = {"tile_size": TILE, "overlap": overlap, "batch_size": 4}
    got = sliding_window_inference(identity, {"factor": 2.0}, image, **options)
    expected = 2.0 * np.concatenate([image, image.sum(axis=-1, keepdims=True)], axis=-1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_unknown_pixels_are_filled_for_the_network_and_stay_unknown():
    image = surface((40, 37), holes=0.2)[..., None]
    fewest = lambda params, windows: jnp.broadcast_to(  # noqa: E731
        windows.min(axis=(1, 2, 3), keepdims=True), windows.shape
    )
    for options, fill in (({}, 0.0), ({"fill": -3.0}, -3.0)):
        got = sliding_window_inference(fewest, None, image, tile_size=TILE, **options)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(image))
        np.testing.assert_allclose(got[np.isfinite(image)], fill, atol=1e-6)


def test_a_network_of_another_library_with_three_classes_is_blended_as_its_windows_are():
    image = surface((16, 24), holes=0.0)[..., None]
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 1, 3)), jnp.float32)

    def classify(params, windows):
        logits = jax.lax.conv_general_dilated(
            windows, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.softmax(logits)

    got = sliding_window_inference(classify, weights, image, tile_size=16)
    left, right = (np.asarray(classify(weights, image[None, :, s : s + 16]))[0] for s in (0, 8))
    hann = np.hanning(33)[1::2]
    share = hann[8:] / (hann[8:] + hann[:8])
    np.testing.assert_allclose(got[:, :8], left[:, :8], atol=1e-6)
    middle = share[:, None] * left[:, 8:] + (1 - share)[:, None] * right[:, :8]
    np.testing.assert_allclose(got[:, 8:16], middle, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=-1), 1.0, atol=1e-6)


def test_calls_of_one_network_share_one_compiled_function():
    traces = []

    def apply(params, windows):
        traces.append(windows.shape)
        return windows

    for seed in range(3):
        sliding_window_inference(apply, None, surface((40, 50 + seed), seed)[..., None], tile_size=TILE)
    assert len(traces) <= 2  # to learn the number of classes, and to compile


@pytest.mark.parametrize(
    ("image", "apply", "options", "told"),
    [
        (np.zeros((4, 4)), identity, {}, r"must be \[height, width, channels\]"),
        (np.zeros((0, 4, 1)), identity, {}, r"must be \[height, width, channels\]"),
        (np.zeros((4, 4, 1)), identity, {"overlap": 1.0}, "overlap"),
        (np.zeros((4, 4, 1)), identity, {"tile_size": 0}, "tile_size"),
        (np.zeros((4, 4, 1)), lambda params, x: x[:, ::2], {}, r"must be one array \[batch, size, size, c"),
        (np.zeros((4, 4, 1)), lambda params, x: x[..., 0], {}, r"must be one array \[batch, size, size, cl"),
        (np.zeros((4, 4, 1)), lambda params, x: (x, params), {}, "apply gives .* must be one array"),
    ],
)
def test_what_cannot_be_blended_is_refused(image, apply, options, told):
    with pytest.raises(ValueError, match=told):
        sliding_window_inference(apply, {"factor": 1.0}, image, **{"tile_size": 4} | options)
