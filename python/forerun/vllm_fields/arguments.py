"""Classes and methods that check their arguments against the tables of fields."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, ParamSpec, TypeVar

from forerun.errors import InvalidArgumentError
from forerun.util.checks import Problems
from forerun.vllm_fields import METHODS, OWNERS, POSITIONAL, Kind, field_problems, unknown_name

_T = TypeVar("_T")
_R = TypeVar("_R")
_P = ParamSpec("_P")


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


@functools.cache
def _parameters(
    method: Callable[..., Any],
) -> tuple[inspect.Signature, list[str], list[inspect.Parameter]]:
    """A method's signature, its receiver and its other parameters.

    Read when it is called first: reading those of all methods is a part of what an import takes.
    """
    signature = inspect.signature(method)
    receivers = [name for name in signature.parameters if name in ("self", "cls")]
    return signature, receivers, list(signature.parameters.values())[len(receivers) :]


def checked_arguments(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a method or function check its arguments, against the table of them if it has one.

    Unknown, missing, surplus and refused arguments raise InvalidArgumentError, never TypeError.
    Parameters of vLLM's that the method does not have are accepted with the values that the table
    accepts.
    """
    owner = method.__qualname__.removesuffix(".__init__")

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        signature, receivers, own = _parameters(method)
        names = {parameter.name for parameter in own}
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own)
        problems = Problems()
        given = {name: value for name, value in kwargs.items() if takes_any or name in names}
        others = {name: value for name, value in kwargs.items() if name not in given}
        try:
            bound = signature.bind_partial(*args, **given)
        except TypeError:
            most = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in own)
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
