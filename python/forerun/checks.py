"""Checks of what callers pass; each failure names the field, the value and what is valid."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from forerun.errors import InvalidArgumentError

_INT32_MAX = 2**31 - 1
_T = TypeVar("_T")


def check_int(field: str, value: Any, *, least: int = -_INT32_MAX, most: int = _INT32_MAX) -> int:
    """The value as an int; numpy integers are welcome, bools and floats are not."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidArgumentError(field, value, "an integer")
    number = int(value.__index__())
    if not least <= number <= most:
        raise InvalidArgumentError(field, number, f"an integer from {least} to {most}")
    return number


def check_number(field: str, value: Any) -> float:
    """The value as a float; ints and numpy numbers are welcome, bools and strings are not."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise InvalidArgumentError(field, value, "a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(field, value, "a number") from None


def check_bool(field: str, value: Any) -> bool:
    """The value, which must be True or False."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(field, value, "True or False")
    return value


def check_str(field: str, value: Any) -> str:
    """The value, which must be a string that UTF-8 can encode: no lone surrogates."""
    if not isinstance(value, str):
        raise InvalidArgumentError(field, value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            field,
            repr(value),
            f"text that UTF-8 can encode: character {error.start} is a lone surrogate",
        ) from None
    return value


def check_path(field: str, value: Any, expected: str = "a path that is not empty") -> Path:
    """The value as a path, with `~` expanded; it may name something that does not exist."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not path or not isinstance(path, str):
        raise InvalidArgumentError(field, value, expected)
    if "\0" in check_str(field, path):
        raise InvalidArgumentError(field, repr(path), "a path without null characters")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # a user who has no home
        raise InvalidArgumentError(field, path, f"an existing path: {error}") from error


def check_one_of(field: str, value: Any, choices: Iterable[Any], why: str) -> None:
    """Raises unless the value is one of the choices, which is all this engine can honour."""
    allowed = list(choices)
    # 1 == True in Python, but tensor_parallel_size=True is a mistake.
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        listed = " or ".join(repr(choice) for choice in allowed)
        raise InvalidArgumentError(field, value, f"{listed}: {why}")


def reject_unknown(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raises for the first name that is not known, and suggests the nearest one that is."""
    names = list(known)
    for name in given:
        if name in names:
            continue
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(sorted(names))}"
        raise InvalidArgumentError(name, "an unknown name", f"an option of {owner}; {hint}")


def checked_keywords(cls: type[_T]) -> type[_T]:
    """Makes a dataclass answer unknown keywords with InvalidArgumentError."""
    original: Callable[..., None] = cls.__init__
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        reject_unknown(kwargs, names, cls.__name__)
        original(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls
