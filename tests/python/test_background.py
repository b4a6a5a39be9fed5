"""Functions that run in a thread while their caller does something else."""

from __future__ import annotations

import threading

import pytest

from forerun.util.background import Background


def test_the_function_runs_in_another_thread_and_its_result_may_be_read_twice() -> None:
    started, proceed = threading.Event(), threading.Event()

    def work() -> int:
        started.set()
        assert proceed.wait(60)
        return threading.get_ident()

    working = Background(work)
    assert started.wait(60)  # while this thread is here
    proceed.set()
    assert working.result() == working.result() != threading.get_ident()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_the_function_raises_is_raised_by_each_result(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("on purpose")

    failing = Background(fail)
    for _ in range(2):
        with pytest.raises(kind, match="on purpose"):
            failing.result()
