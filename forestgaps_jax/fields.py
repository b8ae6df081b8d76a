"""Fields of a dataclass checked against their declared types, with their docstrings at hand."""

import ast
import inspect
import textwrap
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

_PARSING = threading.Lock()
"""Python 3.11 fails to parse in two threads at once."""


_LONGEST = 300


class Rule(NamedTuple):
    """What a value must be beyond its type."""

    says: str
    holds: Callable[[Any], bool]

    def __repr__(self) -> str:
        return f"Rule({self.says!r})"


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value as its declared type, or an error that says what is allowed."""
    rules: list[Rule] = []
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        rules = [extra for extra in extras if isinstance(extra, Rule)]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        inner = next(arg for arg in args if arg is not NoneType)
        return None if value is None else checked(name, value, inner)
    if origin is Literal and value not in args:
        raise ValueError(f"{name} = {shown(value)}: must be one of {', '.join(map(repr, args))}")
    if origin is dict:
        return _checked_dict(name, value, args)
    if origin is tuple:
        return _checked_tuple(name, value, args)
    if origin is not Literal:
        value = _as_type(name, value, hint)
    for rule in rules:
        if not rule.holds(value):
            raise ValueError(f"{name} = {shown(value)}: must be {rule.says}")
    return value


def _checked_tuple(name: str, value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping) or not hasattr(value, "__iter__"):
        size = "" if args[-1] is Ellipsis else f" of {len(args)} values"
        raise TypeError(f"{name} = {shown(value)}: must be a list{size}")
    items = tuple(value)
    hints = (args[0],) * len(items) if args[-1] is Ellipsis else args
    if len(items) != len(hints):
        raise ValueError(f"{name} = {shown(list(items))}: must be {len(hints)} values")
    return tuple(checked(name, item, hint) for item, hint in zip(items, hints, strict=True))


def _checked_dict(name: str, value: Any, args: tuple[Any, ...]) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} = {shown(value)}: must be a table of names and values")
    key_hint, value_hint = args
    items = {}
    for key, item in value.items():
        if key_hint is float and isinstance(key, str):  # TOML has no other keys
            try:
                key = float(key)
            except ValueError:
                raise TypeError(f"{name} has the name {shown(key)}: must be a number") from None
        key = checked(name, key, key_hint)
        if key in items:
            raise ValueError(f"{name} has {key!r} twice: must be one value for each")
        items[key] = checked(f"{name}[{key!r}]", item, value_hint)
    return items


def _as_type(name: str, value: Any, kind: type) -> Any:
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, bool) and kind is not bool:
        raise TypeError(f"{name} = {value!r}: must be {kind.__name__}, not bool")
    if kind is float and isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} = {shown(value)}: must be below 1.8e308") from None
    if kind is str and isinstance(value, Path):
        value = str(value)
    if not isinstance(value, kind):
        raise TypeError(f"{name} = {shown(value)}: must be {kind.__name__}, not {type(value).__name__}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} = {shown(value)}: must be text that can be written as UTF-8")
    return value


def shown(value: Any) -> str:
    """A value as messages show it: not longer than a few lines."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python shows no more than 4300 digits, or 1000 lists in lists
        return f"({type(value).__name__} too large to show)"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of those that it extends, by the field's name."""
    with _PARSING:
        return _field_docs(cls)


@cache
def _field_docs(cls: type) -> dict[str, str]:
    docs = {}
    for owner in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for definition, text in zip(body.body, body.body[1:], strict=False):
            match definition, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(doc))):
                    docs[name] = inspect.cleandoc(doc)
    return docs
