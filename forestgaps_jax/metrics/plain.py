"""Metrics as JSON can hold them."""

import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any) -> Any:
    """The same with string keys, lists for tuples, and None for what is not finite.

    >>> to_json({5.0: {"iou": math.nan, "f1": 0.5}})
    {'5': {'iou': None, 'f1': 0.5}}
    """
    if isinstance(value, Mapping):
        return {str(k).removesuffix(".0"): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
