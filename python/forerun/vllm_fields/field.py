"""One field of vLLM's API, or of Forerun's own, and what Forerun does with it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from forerun.util.interrupts import pass_on_interrupt


class Kind(Enum):
    """What becomes of a field's value."""

    RUNS = "runs"  # Forerun honours it; the owner checks the value
    FIXED = "fixed"  # one meaning holds here; other values are refused
    NO_EFFECT = "no effect"  # every value holds here, since nothing depends on it


class _Mark:
    """A marker for a default that is not a value."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


REQUIRED = _Mark("(required)")
NOT_IN_VLLM = _Mark("(not in vLLM)")


class Made(_Mark):
    """A default that vLLM makes anew, such as an empty CompilationConfig."""


class Field(NamedTuple):
    """What vLLM's default is and what Forerun does.

    Attributes:
        default: vLLM's default, REQUIRED, or NOT_IN_VLLM for a field of Forerun's own.
        note: RUNS: what it does; otherwise: why one value is all, or why none has an effect.
        also: FIXED: values that are accepted besides the default.
    """

    default: Any
    kind: Kind
    note: str
    also: tuple[Any, ...] = ()

    def is_default(self, value: Any) -> bool:
        """Whether the value asks for what vLLM does by default."""
        return _is_default(value, self.default)

    def accepts(self, value: Any) -> bool:
        """Whether the value means what holds here; of a field that RUNS the owner decides."""
        if self.kind is Kind.RUNS or self.is_default(value):
            return True
        if self.kind is Kind.FIXED:
            return any(_same(value, choice) for choice in self.also)
        if isinstance(self.default, bool):
            return value is None or _same(value, True) or _same(value, False)
        if isinstance(self.default, int | float):
            return value is None or _is_number(value)
        return value is None or not isinstance(self.default, str) or isinstance(value, str)

    def expected(self) -> str:
        """What an error says about other values."""
        if self.kind is Kind.FIXED:
            choices = [None if isinstance(self.default, Made) else self.default, *self.also]
            return f"{' or '.join(map(repr, choices))}: {self.note}"
        kind = {bool: "True or False", int: "a number", float: "a number", str: "a string"}
        return f"{kind[type(self.default)]}, which has no effect: {self.note}"


Fields: TypeAlias = Mapping[str, Field]


def runs(default: Any, note: str) -> Field:
    """A field that Forerun honours."""
    return Field(default, Kind.RUNS, note)


def own(note: str) -> Field:
    """A field that vLLM does not have."""
    return Field(NOT_IN_VLLM, Kind.RUNS, note)


def fixed(default: Any, note: str, *also: Any) -> Field:
    """A field with one meaning here."""
    return Field(default, Kind.FIXED, note, also)


def all_fixed(note: str, **defaults: Any) -> dict[str, Field]:
    """Fields with one meaning here, for a shared reason."""
    return {name: fixed(default, note) for name, default in defaults.items()}


def no_effect(note: str, **defaults: Any) -> dict[str, Field]:
    """Fields that nothing here depends on, for a shared reason."""
    return {name: Field(default, Kind.NO_EFFECT, note) for name, default in defaults.items()}


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(default, Made) or default is None:
        # Nothing and an empty config ask for the same.
        return value is None or (type(value) in (dict, list, tuple, set) and not value)
    if isinstance(default, list | set | dict):
        return (
            value is None
            or (type(value) in (dict, list, tuple, set) and not value)
            or (type(value) is type(default) and bool(value == default))
        )
    return _same(value, default)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, choice: Any) -> bool:
    """Equal and of the same kind: 1 == True in Python, but tensor_parallel_size=True is wrong."""
    if value is choice:
        return True
    try:
        if _is_number(choice):
            return _is_number(value) and bool(value == choice)
        return type(value) is type(choice) and bool(value == choice)
    except Exception as error:  # a subclass of a number may compare as it likes
        pass_on_interrupt(error)
        return False
