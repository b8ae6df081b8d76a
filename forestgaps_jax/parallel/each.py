"""What each of several processes says, told to all of them."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from forestgaps_jax.parallel.processes import is_alone

T = TypeVar("T")


def said_by_each(words: str) -> list[str]:
    """What each process says, in all of them, in the order of their numbers.

    All call it, at the same point of their main threads.
    """
    if is_alone():
        return [words]
    from jax.experimental import multihost_utils

    letters = np.frombuffer(words.encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(letters.size))).tolist()
    # Powers of two, so that few sizes are compiled.
    size = 1 << max(lengths).bit_length()
    told = multihost_utils.process_allgather(np.pad(letters, (0, size - letters.size)))
    lines = np.asarray(told, np.uint8).reshape(len(lengths), size)
    return [line[:length].tobytes().decode() for line, length in zip(lines, lengths, strict=True)]


def done_by_each(act: Callable[[], T]) -> T:
    """Let each process act by itself, without a word to the others; what fails in one fails in all.

    Raises:
        Exception: what this process has failed with.
        OSError: another one has failed; names it.
    """
    try:
        result = act()
    except Exception as error:
        said_by_each(str(error) or type(error).__name__)
        raise
    for number, failure in enumerate(said_by_each("")):
        if failure:
            raise OSError(f"in process {number} of several: {failure}")
    return result
