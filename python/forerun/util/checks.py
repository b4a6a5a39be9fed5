"""Checks of what callers pass; each failure names the field, the value and what is valid.

Values may be anything: what their own methods raise is the caller's mistake too.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from forerun import _core
from forerun.errors import InvalidArgumentError
from forerun.util.interrupts import pass_on_interrupt

_INT32_MAX = 2**31 - 1
_MAX_ITEMS = 1 << 22


class Problems:
    """Collects what several checks raise, so that all of it is raised at once.

    Each `with problems:` block ends at the first InvalidArgumentError in it.
    """

    def __init__(self) -> None:
        self.errors: list[InvalidArgumentError] = []

    def __enter__(self) -> None:
        """Begins one check."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        """Keeps the check's error."""
        if isinstance(error, InvalidArgumentError):
            self.errors.extend(error.problems)
            return True
        return False

    def raise_all(self) -> None:
        """Raises what was collected, if anything was."""
        if self.errors:
            raise InvalidArgumentError.of_all(self.errors)


def check_int(field: str, value: Any, *, least: int = -_INT32_MAX, most: int = _INT32_MAX) -> int:
    """The value as an int; accepts numpy integers, not bools or floats."""
    try:
        number = None if isinstance(value, bool) else int.__add__(operator.index(value), 0)
    except Exception as error:
        pass_on_interrupt(error)
        number = None
    if number is None:
        raise InvalidArgumentError(field, value, "an integer")
    if not least <= number <= most:
        raise InvalidArgumentError(field, number, f"an integer from {least} to {most}")
    return number


def is_integral(value: Any) -> bool:
    """Whether a value is one integer, not an array of them: arrays have an `__index__` as well."""
    return _is_scalar(value, "__index__")


def is_real(value: Any) -> bool:
    """Whether a value is one number, not an array of them."""
    return _is_scalar(value, "__float__")


def _is_scalar(value: Any, conversion: str) -> bool:
    try:
        return hasattr(value, conversion) and not getattr(value, "ndim", 0)
    except Exception as error:
        pass_on_interrupt(error)
        return False


def check_number(field: str, value: Any) -> float:
    """The value as a float; accepts ints and numpy numbers, not bools or strings."""
    number = None
    try:
        # An array of one element converts as well, but is a mistake.
        if not isinstance(value, bool | str | bytes) and not getattr(value, "ndim", 0):
            number = float.__add__(float(value), 0.0)
    except Exception as error:
        pass_on_interrupt(error)
        number = None
    if number is None:
        raise InvalidArgumentError(field, value, "a number")
    return number


def check_bool(field: str, value: Any) -> bool:
    """The value, which must be True or False."""
    if value is not True and value is not False:
        raise InvalidArgumentError(field, value, "True or False")
    return value


def check_str(field: str, value: Any) -> str:
    """The value, which must be a string that UTF-8 can encode: no lone surrogates."""
    if not issubclass(type(value), str):
        raise InvalidArgumentError(field, value, "a string")
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            field,
            repr(text),
            f"text that UTF-8 can encode: character {error.start} is a lone surrogate",
        ) from None
    return text


def check_name(field: str, value: Any) -> str:
    """A string that is not empty."""
    if not check_str(field, value):
        raise InvalidArgumentError(field, "an empty string", "a string that is not empty")
    return value if type(value) is str else str.__str__(value)


def check_path(field: str, value: Any, expected: str = "a path that is not empty") -> Path:
    """The value as a path, with `~` expanded; it may name something that does not exist."""
    try:
        path = os.fspath(value)
    except Exception as error:
        pass_on_interrupt(error)
        path = None
    if not path or not isinstance(path, str):
        raise InvalidArgumentError(field, value, expected)
    if "\0" in check_str(field, path):
        raise InvalidArgumentError(field, repr(path), "a path without null characters")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # a user who has no home
        raise InvalidArgumentError(field, path, f"an existing path: {error}") from error


def check_choice(field: str, value: Any, choices: tuple[str, ...], note: str = "") -> str:
    """The value, which must be one of some strings; an error has the note after them."""
    text = str.__str__(value) if issubclass(type(value), str) else None
    if text is None or text not in choices:
        listed = ", ".join(repr(choice) for choice in choices[:-1])
        raise InvalidArgumentError(field, value, f"{listed} or {choices[-1]!r}{note}")
    return text


def check_quantization(field: str, value: Any) -> _core.QuantizationOptions:
    """Formats of matrices: one name for all, or a dict by what they are for.

    As in vLLM, it may also name the method by which a checkpoint was quantized; the core compares.
    """
    formats, kinds = ("int8", "int4", "none"), ("linear", "embedding", "head")
    methods = ("gptq", "awq", "compressed-tensors", "gguf")
    expected = (
        "None: as stored, 'int8', 'int4', 'none': floats, a dict of 'linear', 'embedding' and "
        "'head', or what the checkpoint is: 'gptq', 'awq', 'compressed-tensors' or 'gguf'"
    )
    if issubclass(type(value), str):
        name = str.__str__(value)
        if name in methods:
            return _core.QuantizationOptions(method=name)
        if name not in formats:
            raise InvalidArgumentError(field, value, expected)
        return _core.QuantizationOptions(*[name] * len(kinds))
    given = check_dict(field, value, expected)
    for kind, name in given.items():
        if not issubclass(type(kind), str) or kind not in kinds:
            raise InvalidArgumentError(field, value, expected)
        if name is not None:
            check_choice(f"{field}[{kind!r}]", name, formats)
    return _core.QuantizationOptions(**given)


def check_list(field: str, value: Any, expected: str) -> list[Any]:
    """The items of a list, a generator or another iterable, but not of a string or a dict."""
    try:
        if isinstance(value, str | bytes | bytearray | Mapping):
            raise TypeError
        items = list(itertools.islice(value, _MAX_ITEMS + 1))
    except Exception as error:
        pass_on_interrupt(error)
        reason = "" if isinstance(error, TypeError) else f" (it raised {type(error).__name__})"
        raise InvalidArgumentError(field, value, expected + reason) from None
    if len(items) > _MAX_ITEMS:
        raise InvalidArgumentError(field, value, f"at most {_MAX_ITEMS} items")
    return items


def check_dict(field: str, value: Any, expected: str = "a dict") -> dict[Any, Any]:
    """A dict's or another mapping's items, as a dict of its own."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError
        return dict(value)
    except Exception as error:
        pass_on_interrupt(error)
        raise InvalidArgumentError(field, value, expected) from None


def check_ids(field: str, value: Any, expected: str = "a list of token ids") -> list[int]:
    """A list of integers of at least 0."""
    return [check_int(field, token, least=0) for token in check_list(field, value, expected)]


def copied(field: str, value: Any) -> Any:
    """The value, with lists, tuples, sets and dicts in it copied."""
    try:
        return _copied(value)
    except RecursionError:
        raise InvalidArgumentError(
            field, "a value", "values that are not as deeply nested"
        ) from None


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_copied, value))
    return value


def check_core(problems: Problems, check: Callable[[], None], reset: Callable[[str], bool]) -> None:
    """Collects every problem that a check of the core's has, which names one at a time.

    Args:
        check: raises InvalidArgumentError for the first wrong field.
        reset: sets a field back to its default; False where it is there already, or unknown.
    """
    while True:
        try:
            return check()
        except InvalidArgumentError as error:
            problems.errors.append(error)
            if not reset(error.field):
                return None
