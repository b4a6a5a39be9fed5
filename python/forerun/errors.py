"""The exceptions that Forerun raises."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = 8
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_MAX_TEXT = 1000


def shown(value: object) -> str:
    """A value as text for a message: never long, even if the value's own repr is or fails."""
    try:
        text = str.__str__(value) if isinstance(value, str) else _REPR.repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT // 2]}...{text[-100:]}"


class ForerunError(Exception):
    """The base of every exception that Forerun raises on purpose."""


class InvalidArgumentError(ForerunError, ValueError):
    """The caller's mistake in a config, an option or a request.

    Attributes:
        field: the name of what is wrong.
        value: what was given, as text.
        expected: what would be valid.
        problems: every mistake of the call, this one first; the message lists them all.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field
        self.value = shown(value)
        self.expected = expected
        self._all: tuple[InvalidArgumentError, ...] = ()

    @property
    def problems(self) -> tuple[InvalidArgumentError, ...]:
        """Every mistake of the call."""
        return self._all or (self,)

    @classmethod
    def of_all(cls, problems: Sequence[InvalidArgumentError]) -> InvalidArgumentError:
        """One error that lists all problems, of which there is at least one."""
        if len(problems) == 1:
            return problems[0]
        first = problems[0]
        error = InvalidArgumentError(first.field, first.value, first.expected)
        error._all = tuple(problems)
        return error

    def __str__(self) -> str:
        lines = [
            f"{problem.field}: got {problem.value}; expected {problem.expected}"
            for problem in self.problems
        ]
        if len(lines) > 1:
            lines = [f"{len(lines)} arguments are wrong:", *(f"  {line}" for line in lines)]
        # What was given may hold lone surrogates; the message can always be printed.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles without the value itself, which may be anything."""
        parts = [(p.field, p.value, p.expected) for p in self._all]
        return _rebuild, (type(self), (self.field, self.value, self.expected), parts)


def _rebuild(
    cls: type[InvalidArgumentError],
    first: tuple[str, str, str],
    parts: list[tuple[str, str, str]],
) -> InvalidArgumentError:
    error = cls(*first)
    error._all = tuple(InvalidArgumentError(*part) for part in parts)
    return error


class CheckpointError(InvalidArgumentError):
    """A model directory or file that is missing, damaged, or of a kind that is not understood."""


class DeviceError(ForerunError, RuntimeError):
    """A device, its driver or its library that is missing, does not suit, or failed.

    Attributes:
        wanted: what was attempted.
        found: what is there instead.
        remedy: what to do about it.
        is_lost: the device does nothing more for this process.
    """

    def __init__(self, wanted: str, found: str, remedy: str, is_lost: bool = False) -> None:
        super().__init__(wanted, found, remedy, is_lost)
        self.wanted = wanted
        self.found = found
        self.remedy = remedy
        self.is_lost = is_lost

    def __str__(self) -> str:
        return f"wanted {self.wanted}; found {self.found}; {self.remedy}"


class QueueFullError(ForerunError, RuntimeError):
    """As many requests wait as may: this one was not taken.

    Attributes:
        limit: `max_waiting_requests`.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.limit} requests wait already, the most that may (max_waiting_requests)"


class DeadlineExceededError(ForerunError, TimeoutError):
    """A call that was not finished within its `timeout`.

    Attributes:
        timeout: in seconds.
        outputs: a RequestOutput for each prompt of the call. What was cut off has what was
            generated in time, and the finish_reason "deadline".
    """

    def __init__(self, timeout: float, outputs: Sequence[Any] = ()) -> None:
        super().__init__(timeout, outputs)
        self.timeout = timeout
        self.outputs = list(outputs)

    def __str__(self) -> str:
        return f"not finished within the timeout of {self.timeout:g} s"


class EngineClosedError(ForerunError, RuntimeError):
    """A request to a model that was closed, or one that was not finished when it was closed."""


class EngineBusyError(ForerunError, RuntimeError):
    """A call of a model by code that this model called, such as a logits processor."""


class InternalError(ForerunError, RuntimeError):
    """A broken invariant of the engine: a bug of Forerun's, never the caller's."""
