"""What the metrics that a user feeds by hand accept: images, masks and heights of NumPy, jax and others."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forestgaps_jax.types import SAME_THRESHOLD


def as_pixels(name: str, array: Any) -> Any:
    """The array as ``[batch, height, width]``; one of jax stays where it is, others become NumPy.

    Args:
        name: how an error calls it.
        array: ``[batch, height, width, 1]`` or ``[batch, height, width]``, numbers or booleans.

    Raises:
        ValueError: another shape; says how to get there from channels first, two channels or one tile.
        TypeError: not numbers.
    """
    array = array if isinstance(array, jax.Array) else np.asarray(array)
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError(f"{name} have type {array.dtype}: must be numbers or booleans")
    if array.ndim == 4 and array.shape[-1] == 1:
        return array.reshape(array.shape[:3])
    if array.ndim == 3:
        return array
    raise ValueError(
        f"{name} have shape {array.shape}: must be [batch, height, width, 1] or [batch, height, width]"
        + _hint(name, array.shape)
    )


def _hint(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return f"; for one tile pass {name}[None]"
    if len(shape) != 4:
        return ""
    if shape[1] == 1:
        return f"; these are channels first: pass {name}.transpose(0, 2, 3, 1), or {name}[:, 0]"
    if shape[-1] == 2:
        return f"; pass one of the two channels, such as that of gap, {name}[..., 1]"
    if shape[1] == 2:
        return f"; channels come first: pass one of the two, such as that of gap, {name}[:, 1]"
    return ""


def same_shape(**arrays: Any) -> list[Any]:
    """`as_pixels` of each; None stays None.

    Raises:
        ValueError: also where one is of another shape than the first.
    """
    pixels: list[Any] = [array if array is None else as_pixels(name, array) for name, array in arrays.items()]
    for name, array in zip(arrays, pixels, strict=True):
        if array is not None and array.shape != pixels[0].shape:
            raise ValueError(
                f"{name} are of {array.shape} pixels, {next(iter(arrays))} of {pixels[0].shape}: "
                "must be the same"
            )
    return pixels


def on_host(*arrays: Any) -> bool:
    """Whether none of the arrays is one of jax."""
    return not any(isinstance(array, jax.Array) for array in arrays)


def check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """The list of height thresholds as floats.

    Raises:
        ValueError: it is empty, or holds what is no height, or the same twice.
    """
    heights = tuple(float(threshold) for threshold in thresholds)
    if not heights or not all(0 < height < np.inf for height in heights):
        raise ValueError(f"thresholds = {list(thresholds)}: must be one or more heights above 0, metres")
    if min(np.diff(sorted(heights)), default=np.inf) <= 2 * SAME_THRESHOLD:
        raise ValueError(f"thresholds = {list(thresholds)}: holds a height twice")
    return heights


def as_heights(threshold_value: Any, batch_size: int, thresholds: Sequence[float]) -> Any:
    """Height thresholds as float32 ``[batch]``; one of jax stays where it is, others become NumPy.

    Args:
        threshold_value: one number for all, or one a sample.
        batch_size: samples.
        thresholds: the listed heights.

    Raises:
        ValueError: none is given, the number of values is wrong, or one on the host is not listed.
    """
    if threshold_value is None:
        raise ValueError(f"threshold_value is missing: must be one of {list(thresholds)} m, or one a sample")
    heights = threshold_value if isinstance(threshold_value, jax.Array) else np.asarray(threshold_value)
    if heights.shape not in ((), (batch_size,), (batch_size, 1)):
        raise ValueError(
            f"threshold_value has shape {heights.shape}: must be one number or ({batch_size},), one a sample"
        )
    if isinstance(heights, np.ndarray):
        heights = np.broadcast_to(heights.reshape(-1), batch_size).astype(np.float32)
        listed = (abs(heights[:, None] - np.asarray(thresholds, np.float32)) < SAME_THRESHOLD).any(axis=1)
        if not listed.all():
            raise ValueError(unlisted(thresholds, f"{heights[~listed][0]:g}"))
        return heights
    return jnp.broadcast_to(heights.reshape(-1), batch_size).astype(jnp.float32)


def unlisted(thresholds: Sequence[float], height: str = "that of some sample") -> str:
    """Message for a height threshold that is not listed."""
    return f"threshold_value = {height}: must be one of {list(thresholds)} m, which the metrics were made for"
