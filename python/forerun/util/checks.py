"""Checks of what callers pass; each failure names the field, the value and what is valid.

Values may be anything: what their own methods raise is the caller's mistake too.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from forerun.errors import InvalidArgumentError
from forerun.util.interrupts import pass_on_interrupt
from forerun.vllm_fields import METHODS, OWNERS, POSITIONAL, Kind, field_problems, unknown_name

_INT32_MAX = 2**31 - 1
_MAX_ITEMS = 1 << 22
_T = TypeVar("_T")
_R = TypeVar("_R")
_P = ParamSpec("_P")


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
    """The value as an int; numpy integers are welcome, bools and floats are not."""
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
    """The value as a float; ints and numpy numbers are welcome, bools and strings are not."""
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


def check_choice(field: str, value: Any, choices: tuple[str, ...]) -> str:
    """The value, which must be one of some strings."""
    text = str.__str__(value) if issubclass(type(value), str) else None
    if text is None or text not in choices:
        listed = ", ".join(repr(choice) for choice in choices[:-1])
        raise InvalidArgumentError(field, value, f"{listed} or {choices[-1]!r}")
    return text


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


def checked_keywords(cls: type[_T]) -> type[_T]:
    """Makes a dataclass check its keywords against the table of its fields.

    Unknown names and refused values raise InvalidArgumentError, in the constructor and when an
    attribute is set. vLLM's fields that the class does not have can be read: they are vLLM's
    defaults.
    """
    owner, names = cls.__name__, {field.name for field in fields(cls)}  # type: ignore[arg-type]
    for name, known in OWNERS[owner].items():
        if name not in names and known.kind is not Kind.RUNS:
            setattr(cls, name, known.default)

    def set_checked(self: Any, name: str, value: Any) -> None:
        if name not in names and not name.startswith("_"):
            problems = Problems()
            problems.errors.extend(field_problems(owner, {name: value}))
            problems.raise_all()
        object.__setattr__(self, name, value)

    cls.__setattr__ = set_checked  # type: ignore[method-assign]
    return check_constructor(cls, owner, POSITIONAL.get(owner, ()))


def check_constructor(cls: type[_T], owner: str, positional: tuple[str, ...] = ()) -> type[_T]:
    """Makes a dataclass's constructor raise everything that is wrong with its arguments at once.

    Args:
        owner: whose table the keywords are looked up in.
        positional: the arguments that need no name.
    """
    original: Callable[..., None] = cls.__init__
    own = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    required = [
        name
        for name, field in own.items()
        if field.default is MISSING and field.default_factory is MISSING
    ]

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        problems = Problems()
        if len(args) > len(positional):
            given = f"{len(args)} arguments without a name"
            most = f"at most {len(positional)}: {', '.join(positional)}"
            expected = most if positional else "keyword arguments"
            problems.errors.append(InvalidArgumentError(owner, given, expected))
        for name in positional[: len(args)]:
            if name in kwargs:
                problems.errors.append(InvalidArgumentError(name, "two values", "one"))
        kwargs = {**dict(zip(positional, args, strict=False)), **kwargs}
        problems.errors.extend(field_problems(owner, kwargs))
        missing = [name for name in required if name not in kwargs]
        for name in missing:
            problems.errors.append(InvalidArgumentError(name, "nothing", "a value"))
        wrong = {problem.field for problem in problems.errors}
        if not missing:
            with problems:
                original(self, **{k: v for k, v in kwargs.items() if k in own and k not in wrong})
        problems.raise_all()

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def checked_methods(cls: type[_T]) -> type[_T]:
    """Makes the constructor, calls and public methods of a class check their arguments."""
    for name, member in list(vars(cls).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, classmethod):
            setattr(cls, name, classmethod(checked_arguments(member.__func__)))
        elif inspect.isfunction(member):
            setattr(cls, name, checked_arguments(member))
    return cls


def checked_arguments(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a method or function check its arguments, against the table of them if it has one.

    Unknown, missing, surplus and refused arguments raise InvalidArgumentError, never TypeError.
    Parameters of vLLM's that the method does not have are accepted with the values that the table
    accepts.
    """
    owner = method.__qualname__.removesuffix(".__init__")
    signature = inspect.signature(method)
    receivers = [name for name in signature.parameters if name in ("self", "cls")]
    own = list(signature.parameters.values())[len(receivers) :]
    names = {parameter.name for parameter in own}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own)
    most = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in own)

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        problems = Problems()
        given = {name: value for name, value in kwargs.items() if takes_any or name in names}
        others = {name: value for name, value in kwargs.items() if name not in given}
        try:
            bound = signature.bind_partial(*args, **given)
        except TypeError:
            raise InvalidArgumentError(
                owner,
                f"{len(args) - len(receivers)} arguments without a name",
                f"at most {most}, none of which is given by name as well",
            ) from None
        arguments = {key: item for key, item in bound.arguments.items() if key not in receivers}
        if owner in METHODS:
            problems.errors.extend(field_problems(owner, {**others, **arguments}))
        else:
            problems.errors.extend(unknown_name(owner, name, names) for name in others)
        for parameter in own:
            is_required = (
                parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            )
            if is_required and parameter.name not in arguments:
                problems.errors.append(InvalidArgumentError(parameter.name, "nothing", "a value"))
        problems.raise_all()
        return method(*bound.args, **bound.kwargs)

    return call
