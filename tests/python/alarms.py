"""Signals that interrupt a call, as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


class Alarm(Exception):
    """What the handler raises: any exception, not only KeyboardInterrupt."""


def interrupt(call: Callable[[], Any], seconds: float) -> bool:
    """Whether the call was ended by an alarm after that time."""
    fired = False

    def handler(*_: object) -> None:
        nonlocal fired
        if not fired:
            fired = True
            raise Alarm

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
    return was_interrupted
