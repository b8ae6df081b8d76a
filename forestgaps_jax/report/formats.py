"""Numbers as the page shows them."""

import math
from datetime import timedelta

UNDEFINED = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits; a dash where it is undefined.

    >>> number(0.87149), number(math.nan), number(-0.0001)
    ('0.871', '–', '0.000')
    """
    if value is None or not math.isfinite(value):
        return UNDEFINED
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if not any(c in text for c in "123456789") else text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage.

    >>> percent(0.1789)
    '17.9 %'
    """
    return UNDEFINED if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def count(value: float | None) -> str:
    """A whole number with its thousands apart.

    >>> count(546065)
    '546,065'
    """
    return UNDEFINED if value is None or not math.isfinite(value) else f"{value:,.0f}"


def height(value: float) -> str:
    """A height threshold.

    >>> height(5.0), height(7.5)
    ('5 m', '7.5 m')
    """
    return f"{value:g} m"


def duration(seconds: float) -> str:
    """A time in the units that one would say.

    >>> duration(92.0), duration(8000.0), duration(4.2)
    ('1 min 32 s', '2 h 13 min', '4 s')
    """
    hours, minutes = divmod(int(timedelta(seconds=seconds).total_seconds()), 3600)
    minutes, rest = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
