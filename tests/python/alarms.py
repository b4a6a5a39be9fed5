"""Signals that interrupt a call, as Ctrl-C does."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any


class Alarm(Exception):
    """What the handler raises: any exception, not only KeyboardInterrupt."""


def interrupt(call: Callable[[], Any], seconds: float) -> bool:
    """Whether the call was ended by an alarm after that time.

    Python drops what a handler raises within a destructor or a callback of the garbage collector
    (libraries such as Hypothesis have some), and reports it as unraisable: that call goes on.
    """
    fired = False
    report_unraisable = sys.unraisablehook

    def handler(*_: object) -> None:
        nonlocal fired
        if not fired:
            fired = True
            raise Alarm

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Alarm):
            report_unraisable(unraisable)

    sys.unraisablehook = report_others
    previous = signal.signal(signal.SIGALRM, handler)
    was_interrupted = False
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        call()
    except Alarm:
        was_interrupted = True
    fired = True
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    sys.unraisablehook = report_unraisable
    return was_interrupted
