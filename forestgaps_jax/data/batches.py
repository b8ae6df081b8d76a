"""What a user's loader yields, made into a checked `Batch`."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.types import SAME_THRESHOLD, Batch

DEFAULT_THRESHOLD = 10.0
"""Metres; of a batch that names no threshold."""


def as_batch(item: Any) -> Batch:
    """Check a batch and give it its types.

    Args:
        item: a `Batch` (a tile with several thresholds comes once for each), a mapping with ``dsm``,
            ``mask``, ``threshold`` and perhaps ``valid``, ``chm`` and ``resolution``, or a tuple ``(dsm,
            mask[, threshold[, valid]])``. Images are ``[batch, height, width, 1]`` or ``[batch, height,
            width]``, of NumPy, jax or anything that NumPy can read, such as CPU tensors of PyTorch. A
            threshold, and a resolution (side of a pixel, metres), may be one number for all; without a
            threshold it is 10 m. Where there is no mask, it is where ``chm`` is below the threshold.

    Returns:
        The batch. A pixel is valid where it is given as valid and its DSM (and CHM, if there is one) is
        finite; where it is not, the DSM is NaN: what stands there is nobody's height.

    Raises:
        TypeError: not one of these, or thresholds or resolutions that are no numbers.
        ValueError: shapes that do not fit; thresholds or resolutions that are not above 0, or a mask that
            holds anything but 0 and 1. What these hold is looked at on the host only: arrays on the device
            are not fetched.
    """
    parts = _parts(item.by_threshold() if isinstance(item, Batch) else item)
    dsm = _image("dsm", parts["dsm"], np.float32)
    threshold = as_thresholds(parts.get("threshold"), dsm.shape[0])
    resolution = as_resolutions(parts.get("resolution"), dsm.shape[0])
    chm, valid = parts.get("chm"), parts.get("valid")
    chm = None if chm is None else _image("chm", chm, np.float32)
    valid = None if valid is None else _image("valid", valid, np.bool_)
    if parts.get("mask") is not None:
        mask = _image("mask", parts["mask"], np.float32)
    else:
        mask = (chm < threshold[:, None, None, None]).astype(np.float32)
    for name, image in (("mask", mask), ("valid", valid), ("chm", chm)):
        if image is not None and image.shape != dsm.shape:
            raise ValueError(f"{name} has shape {image.shape}, dsm {dsm.shape}: must be the same")
    _check_mask(mask, valid)
    numpy = jnp if isinstance(dsm, jax.Array) else np
    if valid is not None:
        dsm = numpy.where(valid, dsm, np.float32(np.nan))
    valid = numpy.isfinite(dsm) if chm is None else numpy.isfinite(dsm) & numpy.isfinite(chm)
    return Batch(dsm, mask, threshold, valid, chm, resolution)


def as_images(name: str, images: Any) -> Any:
    """Images as float32 ``[batch, height, width, 1]``; ``[batch, height, width]`` gets its channel."""
    return _image(name, images, np.float32)


def as_thresholds(threshold: Any, batch_size: int) -> Any:
    """Thresholds as float32 ``[batch]``, from one number or one a sample; None is 10 m.

    Raises:
        TypeError: not numbers.
        ValueError: another shape, or, on the host, heights that are not above 0.
    """
    if threshold is None:
        _say_default()
        threshold = DEFAULT_THRESHOLD
    return _one_a_sample("threshold", threshold, batch_size, "a height in metres")


def as_resolutions(resolution: Any, batch_size: int) -> Any:
    """Sides of pixels in metres as float32 ``[batch]``, from one number or one a sample; None stays None.

    Raises:
        TypeError: not numbers.
        ValueError: another shape, or, on the host, sides that are not above 0.
    """
    if resolution is None:
        return None
    return _one_a_sample("resolution", resolution, batch_size, "the side of a pixel in metres")


def _one_a_sample(name: str, given: Any, batch_size: int, what: str) -> Any:
    values = given.astype(np.float32) if isinstance(given, jax.Array) else _numbers(name, given, what)
    if values.ndim == 0:
        return (jnp if isinstance(values, jax.Array) else np).full(batch_size, values, np.float32)
    if values.shape not in ((batch_size,), (batch_size, 1)):
        raise ValueError(f"{name} has shape {values.shape}: must be one number or ({batch_size},)")
    return values.reshape(batch_size)


def _numbers(name: str, given: Any, what: str) -> np.ndarray:
    try:
        values = np.asarray(given)
    except (TypeError, ValueError):  # lists of several lengths
        values = np.empty(0, object)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{name} = {given!r}: must be {what}, or one a sample")
    if (wrong := ~((values > 0) & (values < np.inf))).any():
        raise ValueError(f"{name} = {values[wrong][0]:g}: must be {what}, above 0")
    return values.astype(np.float32)


@cache
def _say_default() -> None:
    logging.getLogger(__name__).warning("batches without thresholds: %g m is taken", DEFAULT_THRESHOLD)


def warn_of_unlisted(threshold: Any, listed: tuple[float, ...]) -> None:
    """Say once that a threshold of a batch is none of those that are scored one by one.

    Thresholds on the device are not fetched for it.
    """
    if isinstance(threshold, np.ndarray) and listed not in _SAID:
        distance = np.abs(threshold[:, None] - np.array(listed, np.float32)).min(axis=1)
        if (distance >= SAME_THRESHOLD).any():
            _SAID.add(listed)
            logging.getLogger(__name__).warning(
                "a batch has the threshold %g m, which is not in config.thresholds = %s: threshold_metrics "
                "have no row for it", threshold[distance.argmax()], listed
            )  # fmt: skip


_SAID: set[tuple[float, ...]] = set()
"""Lists of thresholds that a warning was given for."""


def fill_up(batch: Batch, batch_size: int) -> Batch:
    """Repeat samples of a smaller batch up to ``batch_size``, the repeats without a known pixel.

    So every batch has one shape, for which one function is compiled, and nothing counts twice.

    Raises:
        ValueError: the batch is larger.
    """
    size = batch.dsm.shape[0]
    valid = batch.counted
    if size > batch_size:
        raise ValueError(
            f"a batch of {size} samples after one of {batch_size}: the first must be the largest"
        )
    if size == batch_size:
        return Batch(batch.dsm, batch.mask, batch.threshold, valid, batch.chm, batch.resolution)
    slots = np.arange(batch_size)
    real = (slots < size)[:, None, None, None]
    dsm, mask, threshold, valid = (x[slots % size] for x in (batch.dsm, batch.mask, batch.threshold, valid))
    chm, resolution = (None if x is None else x[slots % size] for x in (batch.chm, batch.resolution))
    unknown = np.float32(np.nan)
    dsm = jnp.where(real, dsm, unknown) if isinstance(dsm, jax.Array) else np.where(real, dsm, unknown)
    return Batch(dsm, mask, threshold, valid & real, chm, resolution)


def _parts(item: Any) -> dict[str, Any]:
    names = ("dsm", "mask", "threshold", "valid", "chm", "resolution")
    if isinstance(item, Batch):
        return {name: getattr(item, name) for name in names}
    if isinstance(item, Mapping):
        if "dsm" not in item or not {"mask", "chm"} & item.keys() or item.keys() - set(names):
            raise ValueError(
                f"a batch with keys {sorted(item)}: must be dsm, mask (or chm), threshold[, valid]"
                "[, resolution]"
            )
        return dict(item)
    if isinstance(item, tuple | list) and 2 <= len(item) <= 4:
        return dict(zip(names, item, strict=False))
    length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise TypeError(
        f"a batch that is a {type(item).__name__}{length}: must be a mapping with dsm, mask, threshold"
        "[, valid] or a tuple (dsm, mask[, threshold[, valid]]); chm and resolution have a place in a "
        "mapping only"
    )


def _check_mask(mask: Any, valid: Any) -> None:
    """Refuse masks of other values than 0 and 1 in valid pixels; one on the device is not fetched for it."""
    if isinstance(mask, np.ndarray) and not isinstance(valid, jax.Array):
        wrong = (mask != 0) & (mask != 1) & (True if valid is None else valid)
        if wrong.any():
            raise ValueError(f"mask holds {mask[wrong][0]:g}: must be 1 for gap and 0 for not")


def _image(name: str, image: Any, dtype: type) -> Any:
    array = _array(image, dtype)
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and array.shape[-1] == 1:
        return array
    hint = ""
    if array.ndim == 4 and array.shape[1] == 1:
        hint = f"; these are channels first: pass {name}.transpose(0, 2, 3, 1)"
    raise ValueError(f"{name} has shape {array.shape}: must be [batch, height, width, 1]{hint}")


def _array(values: Any, dtype: type) -> Any:
    return values.astype(dtype) if isinstance(values, jax.Array) else np.asarray(values, dtype)
