"""Disks that are full do not end a training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Log an error where writing fails, and go on."""
    try:
        yield
    except OSError as error:
        logging.getLogger(__name__).error("%s could not be written: %s; training goes on", what, error)
