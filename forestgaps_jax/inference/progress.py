"""A bar over the windows of a raster."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


@contextmanager
def progress_bar(windows: int, shown: bool) -> Iterator[Any]:
    """A bar over windows where someone watches; without tqdm what takes its place shows nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm falls back to text where there are no widgets
            from tqdm.auto import tqdm
    except ImportError:
        yield SimpleNamespace(update=lambda count: None)
        return
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(total=windows, unit="window", disable=not (shown and watched), leave=False) as bar:
        yield bar
