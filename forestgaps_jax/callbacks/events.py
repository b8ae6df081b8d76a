"""TensorBoard's events of a run."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forestgaps_jax.callbacks.disk import tolerated

_PER_THRESHOLD = ("iou", "f1", "precision", "recall", "pr_auc")


def open_events(folder: Path, first_epoch: int) -> Any:
    """TensorBoard's writer to a folder; None, and a warning, without tensorboardX.

    Events of earlier processes are hidden from ``first_epoch`` on, which comes again.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        logging.getLogger(__name__).warning("no TensorBoard events: pip install tensorboardX")
        return None
    writer = SummaryWriter(str(folder), purge_step=first_epoch or None)
    _outlive_full_disks(writer)
    return writer


def _outlive_full_disks(writer: Any) -> None:
    """An error would end the thread that writes, and then its queue, which nobody empties, the training."""
    file: Any = writer.file_writer.event_writer._ev_writer

    def outliving(write: Callable[..., Any]) -> Callable[..., Any]:
        def tolerant(*arguments: Any) -> Any:
            with tolerated("TensorBoard events"):
                return write(*arguments)

        return tolerant

    file.write_event, file.flush, file.close = map(outliving, (file.write_event, file.flush, file.close))


def scalars_of(logs: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of the logs of an epoch."""
    for phase in ("train", "val"):
        metrics = logs[f"{phase}_metrics"]
        # A regression counts its pixels again.
        for name, value in _numbers({**metrics.get("regression", {}), **metrics}):
            yield f"{phase}/{name}", value
        for threshold, by_name in metrics.get("threshold_metrics", {}).items():
            for name, value in _numbers(by_name):
                if name in _PER_THRESHOLD:
                    yield f"{phase}/{name}/{threshold:g}m", value
    yield from _numbers({"learning_rate": logs["lr"]})


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Those of the metrics that are one number."""
    for name, value in metrics.items():
        scalar = isinstance(value, int | float) or getattr(value, "shape", None) == ()
        if scalar and np.asarray(value).dtype.kind in "fiu" and not np.isnan(value):
            yield name, float(value)
