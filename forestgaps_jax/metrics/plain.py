"""Metrics as nested dictionaries, and as JSON can hold them."""

import math
from collections.abc import Mapping
from typing import Any


def merge_metrics(metrics: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Put further metrics beside those of all pixels, and of each threshold that is there.

    >>> merge_metrics(
    ...     {"iou": 0.5, "threshold_metrics": {5.0: {"iou": 0.4}}},
    ...     {"pr_auc": 0.9, "threshold_metrics": {5.0: {"pr_auc": 0.8}}},
    ... )
    {'iou': 0.5, 'threshold_metrics': {5.0: {'iou': 0.4, 'pr_auc': 0.8}}, 'pr_auc': 0.9}
    """
    by_threshold = more.get("threshold_metrics", {})
    for threshold, row in metrics["threshold_metrics"].items():
        row |= by_threshold.get(threshold, {})
    metrics |= {name: value for name, value in more.items() if name != "threshold_metrics"}
    return metrics


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


def from_json(value: Any) -> Any:
    """Metrics again out of what `to_json` made of them: numbers as keys, and NaN for None.

    >>> from_json({"5": {"iou": None, "f1": 0.5}})
    {5.0: {'iou': nan, 'f1': 0.5}}
    """
    if isinstance(value, Mapping):
        return {_as_key(key): from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return math.nan if value is None else value


def _as_key(key: str) -> str | float:
    try:
        return float(key)
    except ValueError:
        return key
