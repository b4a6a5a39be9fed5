"""Locks around native libraries, for several threads."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref

from forerun import _core
from forerun.errors import EngineBusyError

_all: weakref.WeakSet[_core.Turns] = weakref.WeakSet()
_adding = threading.Lock()  # a set that grows cannot be copied


def make_turns() -> _core.Turns:
    """A lock that cannot be acquired once the program ends."""
    turns = _core.Turns()
    with _adding:
        _all.add(turns)
    return turns


def _made() -> set[_core.Turns]:
    with _adding:
        return set(_all)


@atexit.register
def _end_turns() -> None:
    """Waits for the turns of daemon threads, and lets none begin.

    The interpreter ends threads that come back to Python after it is gone, in the middle of native
    code; libraries in Rust abort the process then.
    """
    ended: set[_core.Turns] = set()
    while left := _made() - ended:  # others may be made meanwhile
        for turns in left:
            with contextlib.suppress(EngineBusyError):
                turns.__enter__()
        ended |= left
