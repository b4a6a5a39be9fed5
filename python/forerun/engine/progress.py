"""Progress bars of the offline interface."""

from __future__ import annotations

import functools
import threading
from typing import Any

from forerun.errors import InvalidArgumentError, shown
from forerun.util.interrupts import pass_on_interrupt

_USED = ("__enter__", "__exit__", "format_dict", "set_postfix_str", "update")


def check_use_tqdm(use_tqdm: Any) -> None:
    """Raises unless it is a bool, or a function to call in place of tqdm."""
    if not isinstance(use_tqdm, bool) and not callable(use_tqdm):
        raise InvalidArgumentError("use_tqdm", use_tqdm, "True, False, or a function like tqdm")


def progress_bar(use_tqdm: Any, total: int) -> Any:
    """A bar over some prompts: tqdm's, or that of a function like it."""
    check_use_tqdm(use_tqdm)
    if not isinstance(use_tqdm, bool):
        try:
            bar = use_tqdm(total=total, desc="Generating", unit=" prompts")
            for name in _USED:
                getattr(bar, name)
        except Exception as error:
            pass_on_interrupt(error)
            expected = f"a function like tqdm (it raised {type(error).__name__}: {shown(error)})"
            raise InvalidArgumentError("use_tqdm", use_tqdm, expected) from error
        return bar
    return _bar_class()(total=total, desc="Generating", unit=" prompts", disable=not use_tqdm)


def import_tqdm() -> None:
    """Makes the first bar appear without a delay: tqdm reads metadata of packages."""
    _bar_class()


@functools.cache
def _bar_class() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        # tqdm's own lock is not native: an interrupt can leave it locked for other threads.
        _lock = threading.RLock()
        monitor_interval = 0

    return Bar
