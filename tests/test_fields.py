from typing import Annotated, Literal

import pytest

from forestgaps_jax.fields import Rule, checked, field_docs

Even = Annotated[int, Rule("even", lambda v: v % 2 == 0)]


class Documented:
    """Not a field's docstring."""

    first: int = 1
    """What it is,
    over two lines."""
    silent: int = 2
    last: float = 3.0
    """At the end."""


def test_docstrings_are_those_below_each_field():
    assert field_docs(Documented) == {"first": "What it is,\nover two lines.", "last": "At the end."}


@pytest.mark.parametrize(
    ("value", "hint", "kept"),
    [
        (2, Even, 2),
        (None, Even | None, None),
        (4, Even | None, 4),
        ([2, 4], tuple[Even, ...], (2, 4)),
        ([], tuple[Even, ...], ()),
        ([2, "a"], tuple[Even, Literal["a", "b"]], (2, "a")),
    ],
    ids=str,
)
def test_value_that_is_allowed_is_kept(value, hint, kept):
    assert checked("setting", value, hint) == kept


@pytest.mark.parametrize(
    ("value", "hint", "error", "said"),
    [
        (3, Even, ValueError, "setting = 3: must be even"),
        (3, Even | None, ValueError, "setting = 3: must be even"),
        ([2, 3], tuple[Even, ...], ValueError, "setting = 3: must be even"),
        ([2], tuple[Even, Even], ValueError, "must be 2 values"),
        ("c", Literal["a", "b"], ValueError, "must be one of 'a', 'b'"),
        ([], Literal["a", "b"], ValueError, "must be one of 'a', 'b'"),
        (2, tuple[Even, ...], TypeError, "must be a list"),
    ],
    ids=str,
)
def test_value_that_is_not_allowed_is_refused(value, hint, error, said):
    with pytest.raises(error, match=said):
        checked("setting", value, hint)
