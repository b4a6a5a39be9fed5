"""Which exceptions are failures of the code that they came out of, and which are interrupts."""

from __future__ import annotations

import functools
import signal
import traceback
from types import CodeType, TracebackType
from typing import Any


def raised_by_signal_handler(error: BaseException, trace: TracebackType | None) -> bool:
    """Whether a handler that `signal.signal` installed raised it.

    Python runs such handlers between any two steps of the program, so within a hook as well; what
    they raise is meant for the caller of the model.
    """
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return bool(codes) and any(frame.f_code in codes for frame, _ in traceback.walk_tb(trace))


def pass_on_interrupt(error: BaseException) -> None:
    """Raises the error again if it is an interrupt, not a failure of the code that raised it."""
    if raised_by_signal_handler(error, error.__traceback__):
        raise error


def _code(handler: Any) -> CodeType | None:
    """The bytecode of a handler; None where it is native."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)
    if not hasattr(handler, "__code__"):
        handler = vars(type(handler)).get("__call__")
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None
