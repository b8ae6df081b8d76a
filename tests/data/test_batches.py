import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax.data.batches import (
    _say_default,
    as_batch,
    as_images,
    as_resolutions,
    as_thresholds,
    fill_up,
    warn_of_unlisted,
)
from forestgaps_jax.types import Batch, one_a_sample

SHAPE = (3, 4, 6, 1)
RNG = np.random.default_rng(0)
DSM = RNG.uniform(300, 330, SHAPE).astype(np.float32)
MASK = (RNG.uniform(size=SHAPE) < 0.4).astype(np.float32)
THRESHOLD = np.array([5.0, 10.0, 20.0], np.float32)
VALID = RNG.uniform(size=SHAPE) < 0.8
VALUES = (DSM, MASK, THRESHOLD, VALID)
NAMES = ("dsm", "mask", "threshold", "valid")


def assert_same(batch, dsm=DSM, mask=MASK, threshold=THRESHOLD):
    np.testing.assert_array_equal(batch.dsm, dsm)
    np.testing.assert_array_equal(batch.mask, mask)
    np.testing.assert_array_equal(batch.threshold, threshold)
    assert batch.dsm.dtype == batch.mask.dtype == batch.threshold.dtype == np.float32


@pytest.mark.parametrize("length", [3, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda values: dict(zip(NAMES, values, strict=False)),
        tuple,
        list,
        lambda values: Batch(*values),
        lambda values: Batch(*map(jnp.asarray, values)),
    ],
    ids=["mapping", "tuple", "list", "batch", "jax"],
)
def test_every_form_of_a_batch_is_read(make, length):
    batch = as_batch(make(VALUES[:length]))
    if length == 3:
        assert_same(batch)
        assert batch.valid.all()
    else:
        assert_same(batch, dsm=np.where(VALID, DSM, np.nan))
        np.testing.assert_array_equal(batch.valid, VALID)


def test_what_lies_on_the_device_stays_there_and_the_rest_stays_off_it():
    assert isinstance(as_batch(tuple(map(jnp.asarray, VALUES))).dsm, jax.Array)
    assert isinstance(as_batch(VALUES).dsm, np.ndarray)


def test_images_without_a_channel_get_one():
    batch = as_batch((DSM[..., 0], MASK[..., 0], THRESHOLD, VALID[..., 0]))
    assert_same(batch, dsm=np.where(VALID, DSM, np.nan))
    np.testing.assert_array_equal(as_images("dsm", DSM[..., 0]), DSM)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64, np.float64])
def test_masks_of_any_type_become_float32(dtype):
    assert_same(as_batch((DSM.astype(np.float64), MASK.astype(dtype), THRESHOLD.astype(np.float64))))


def test_valid_of_integers_is_read_as_bool():
    batch = as_batch((DSM, MASK, THRESHOLD, VALID.astype(np.uint8)))
    assert batch.valid.dtype == bool
    np.testing.assert_array_equal(np.isnan(batch.dsm), ~VALID)


def test_the_users_arrays_are_left_as_they_are():
    dsm = DSM.copy()
    as_batch((dsm, MASK, THRESHOLD, VALID))
    np.testing.assert_array_equal(dsm, DSM)


@pytest.mark.parametrize("threshold", [7, 7.0, np.float64(7), jnp.float32(7), np.full(3, 7), [[7], [7], [7]]])
def test_a_threshold_is_one_for_all_or_one_a_sample(threshold):
    values = as_thresholds(threshold, 3)
    assert values.dtype == np.float32
    assert np.asarray(values).tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("threshold", ["10", [5.0, None, 5.0], [[1.0], [1.0, 2.0]], True, {"a": 1}])
def test_thresholds_that_are_no_numbers_are_a_type_error(threshold):
    with pytest.raises(TypeError, match=r"threshold = .*must be a height in metres"):
        as_thresholds(threshold, 3)


@pytest.mark.parametrize("threshold", [0, -5.0, np.nan, np.inf, [5.0, -1.0, 5.0]])
def test_thresholds_that_are_no_heights_are_an_error(threshold):
    with pytest.raises(ValueError, match=r"threshold = .*above 0"):
        as_thresholds(threshold, 3)


def test_thresholds_on_the_device_stay_there():
    with jax.transfer_guard_device_to_host("disallow"):
        values = as_thresholds(jnp.float32(7), 3), as_thresholds(jnp.full(3, 7.0), 3)
    assert all(isinstance(value, jax.Array) and value.shape == (3,) for value in values)


def test_one_warning_tells_of_thresholds_that_are_not_scored(caplog):
    listed = (5.0, 7.25)  # of no other test: it is said once in a process
    with caplog.at_level(logging.WARNING):
        warn_of_unlisted(np.float32([5, 7.25]), listed)
        warn_of_unlisted(jnp.float32([5, 9]), listed)
        assert caplog.text == ""
        for _ in range(3):
            warn_of_unlisted(np.float32([5, 9]), listed)
    assert len(caplog.records) == 1
    assert "9 m" in caplog.text
    assert "config.thresholds = (5.0, 7.25)" in caplog.text


@pytest.mark.parametrize("item", [(DSM, MASK), {"dsm": DSM, "mask": MASK}])
def test_without_a_threshold_10_m_are_taken_and_said(item, caplog):
    _say_default.cache_clear()  # it is said once in a process
    with caplog.at_level(logging.WARNING):
        assert_same(as_batch(item), threshold=np.full(3, 10.0))
    assert "10 m" in caplog.text


def nchw(image):
    return image.transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((nchw(DSM), nchw(MASK), THRESHOLD), r"dsm has shape \(3, 1, 4, 6\).*dsm\.transpose\(0, 2, 3, 1\)"),
        ((DSM, nchw(MASK), THRESHOLD), r"pass mask\.transpose\(0, 2, 3, 1\)"),
        ((DSM[0, ..., 0], MASK, THRESHOLD), r"dsm has shape \(4, 6\): must be \[batch, height, width, 1\]$"),
        ((np.repeat(DSM, 3, -1), MASK, THRESHOLD), r"dsm has shape \(3, 4, 6, 3\)"),
        ((DSM, MASK[:, :2], THRESHOLD), r"mask has shape \(3, 2, 6, 1\), dsm \(3, 4, 6, 1\)"),
        ((DSM, MASK, THRESHOLD, VALID[:2]), r"valid has shape \(2, 4, 6, 1\)"),
        (
            (DSM, np.where(MASK > 0, np.nan, 0.0), THRESHOLD),
            r"mask holds nan: must be 1 for gap and 0 for not",
        ),
        ((DSM, np.where(MASK > 0, np.inf, 0.0), THRESHOLD), r"mask holds inf: must be 1 for gap"),
        ((DSM, MASK, THRESHOLD[:2]), r"threshold has shape \(2,\): must be one number or \(3,\)"),
        ({"dsm": DSM, "masks": MASK}, r"keys \['dsm', 'masks'\]: must be dsm, mask"),
        ({"mask": MASK}, r"keys \['mask'\]"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_so(item, message):
    with pytest.raises(ValueError, match=message):
        as_batch(item)


@pytest.mark.parametrize("item", [DSM, (DSM,), "dsm", None, (*VALUES, 1)])
def test_what_is_no_batch_is_a_type_error(item):
    with pytest.raises(TypeError, match="must be a mapping with dsm, mask"):
        as_batch(item)


def test_a_tuple_too_long_tells_its_length_and_where_chm_goes():
    with pytest.raises(TypeError, match=r"tuple of 5: .*chm and resolution have a place in a mapping only"):
        as_batch((*VALUES, DSM))


# The size of a pixel


@pytest.mark.parametrize(
    "resolution", [0.5, 2, np.float32(0.5), np.full(3, 0.5), [[0.5], [1], [2]], jnp.float32(0.5)]
)
def test_a_resolution_is_one_for_all_or_one_a_sample(resolution):
    values = as_batch(dict(zip(NAMES, VALUES, strict=True)) | {"resolution": resolution}).resolution
    expected = np.broadcast_to(np.asarray(resolution, np.float32).ravel(), 3)
    np.testing.assert_array_equal(values, expected)
    assert (values.dtype, values.shape) == (np.float32, (3,))
    assert isinstance(values, jax.Array) == isinstance(resolution, jax.Array)


def test_batches_carry_the_resolution_that_they_were_given_or_none():
    told = Batch(*VALUES, resolution=np.float32([0.5, 1, 2]))
    np.testing.assert_array_equal(as_batch(told).resolution, told.resolution)
    assert as_batch(VALUES).resolution is None
    assert as_batch({"dsm": DSM, "mask": MASK, "resolution": None}).resolution is None
    assert as_resolutions(None, 3) is None


@pytest.mark.parametrize("put", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_fill_up_repeats_canopy_and_resolution_too(put):
    chm, resolution = DSM - 300, np.float32([0.5, 1, 2])
    batch = fill_up(Batch(*map(put, VALUES), put(chm), put(resolution)), 8)
    order = [0, 1, 2, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(batch.chm, chm[order])
    np.testing.assert_array_equal(batch.resolution, resolution[order])
    full = fill_up(Batch(*map(put, VALUES), put(chm), put(resolution)), 3)
    np.testing.assert_array_equal(full.resolution, resolution)
    bare = fill_up(Batch(*map(put, VALUES)), 8)
    assert (bare.chm, bare.resolution) == (None, None)


@pytest.mark.parametrize("resolution", [0, -1.0, np.nan, np.inf, [1.0, 0.0, 1.0]])
def test_pixels_without_a_size_are_an_error(resolution):
    with pytest.raises(ValueError, match=r"resolution = .*the side of a pixel in metres, above 0"):
        as_batch({"dsm": DSM, "mask": MASK, "threshold": 5.0, "resolution": resolution})


@pytest.mark.parametrize("resolution", ["1", [1.0, None, 1.0], True])
def test_resolutions_that_are_no_numbers_are_a_type_error(resolution):
    with pytest.raises(TypeError, match=r"resolution = .*must be the side of a pixel in metres, or one a"):
        as_resolutions(resolution, 3)


def test_resolutions_of_another_number_are_an_error():
    with pytest.raises(ValueError, match=r"resolution has shape \(2,\): must be one number or \(3,\)"):
        as_batch({"dsm": DSM, "mask": MASK, "threshold": 5.0, "resolution": [1.0, 2.0]})


def test_resolutions_on_the_device_stay_there():
    with jax.transfer_guard_device_to_host("disallow"):
        values = as_resolutions(jnp.float32(2), 3), as_resolutions(jnp.full(3, 2.0), 3)
    assert all(isinstance(value, jax.Array) and value.shape == (3,) for value in values)


@pytest.mark.parametrize("put", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("valid", [VALID, None], ids=["some valid", "all valid"])
def test_fill_up_repeats_samples_without_a_valid_pixel(put, valid):
    batch = fill_up(Batch(*map(put, VALUES[:3]), valid if valid is None else put(valid)), 8)
    order = [0, 1, 2, 0, 1, 2, 0, 1]
    real = (np.arange(8) < 3)[:, None, None, None]
    assert_same(batch, np.where(real, DSM[order], np.nan), MASK[order], THRESHOLD[order])
    np.testing.assert_array_equal(batch.valid[:3], np.ones(SHAPE, bool) if valid is None else valid)
    assert not np.asarray(batch.valid[3:]).any()


def test_a_full_batch_is_left_as_it_is():
    batch = fill_up(Batch(*VALUES), 3)
    assert_same(batch)
    np.testing.assert_array_equal(batch.valid, VALID)


def test_a_batch_larger_than_the_first_is_an_error():
    with pytest.raises(ValueError, match="3 samples after one of 2: the first must be the largest"):
        fill_up(Batch(*VALUES), 2)


# Several thresholds a tile

HEIGHTS = np.array([[5.0, 10.0], [7.0, 2.0], [20.0, 1.0]], np.float32)
MASKS = (RNG.uniform(size=(*SHAPE[:3], 2)) < 0.4).astype(np.float32)


@pytest.mark.parametrize("put", [np.asarray, jnp.asarray], ids=["host", "device"])
def test_images_of_several_thresholds_become_one_a_sample_tile_by_tile(put):
    found = one_a_sample(put(MASKS))
    expected = [image[..., [number]] for image in MASKS for number in range(2)]
    np.testing.assert_array_equal(found, np.stack(expected))
    assert isinstance(found, type(put(MASKS)))


@pytest.mark.parametrize("put", [np.asarray, jnp.asarray], ids=["host", "device"])
def test_a_batch_by_threshold_has_each_tile_once_for_each_of_its_thresholds(put):
    chm, resolution = DSM - np.float32(300), np.float32([0.5, 1.0, 2.0])
    batch = Batch(*map(put, (DSM, MASKS, HEIGHTS, VALID, chm, resolution))).by_threshold()
    for sample, (tile, number) in enumerate((tile, number) for tile in range(3) for number in range(2)):
        assert batch.threshold[sample] == HEIGHTS[tile, number]
        np.testing.assert_array_equal(batch.mask[sample, ..., 0], MASKS[tile, ..., number])
        for name, given in (("dsm", DSM), ("valid", VALID), ("chm", chm), ("resolution", resolution)):
            np.testing.assert_array_equal(getattr(batch, name)[sample], given[tile])
    assert batch.dsm.shape == batch.mask.shape == batch.valid.shape == batch.chm.shape == (6, *SHAPE[1:])
    assert batch.threshold.shape == batch.resolution.shape == (6,)


def test_a_batch_of_several_thresholds_a_tile_is_read_as_one_sample_for_each():
    batch = as_batch(Batch(DSM, MASKS, HEIGHTS, VALID))
    expected = as_batch(Batch(DSM, MASKS, HEIGHTS, VALID).by_threshold())
    for name in ("dsm", "mask", "threshold", "valid"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))
    assert batch.threshold.shape == (HEIGHTS.size,)


def test_a_batch_by_threshold_lacks_what_the_batch_lacks():
    batch = Batch(DSM, MASKS, HEIGHTS).by_threshold()
    assert (batch.valid, batch.chm, batch.resolution) == (None, None, None)


def test_a_batch_of_one_threshold_a_sample_is_by_threshold_already():
    batch = Batch(*VALUES)
    assert batch.by_threshold() is batch
    again = Batch(DSM, MASK, THRESHOLD[:, None], VALID).by_threshold()
    assert_same(again)
