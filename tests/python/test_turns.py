"""The lock of an engine: threads enter in the order in which they came; a fork leaves it whole.

That a wait can be interrupted, and that its owner is refused, is in test_threads.py.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from forerun import EngineBusyError, _core

NUM_THREADS = 6


def wait_for_queue(turns: _core.Turns, length: int) -> None:
    deadline = time.monotonic() + 20
    while turns.num_waiting < length:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_enter_in_the_order_in_which_they_came() -> None:
    turns = _core.Turns()
    entered: list[int] = []

    def enter(index: int) -> None:
        with turns:
            entered.append(index)

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(NUM_THREADS)]
    with turns:
        for index, thread in enumerate(threads):
            thread.start()
            wait_for_queue(turns, index + 1)
        assert entered == []
    for thread in threads:
        thread.join()
    assert entered == list(range(NUM_THREADS))
    assert turns.num_waiting == 0


def test_a_thread_that_comes_again_waits_for_those_that_came_before() -> None:
    turns = _core.Turns()
    entered: list[str] = []

    def enter() -> None:
        with turns:
            entered.append("other")

    for _ in range(50):
        turns.__enter__()
        thread = threading.Thread(target=enter)
        thread.start()
        wait_for_queue(turns, 1)
        turns.__exit__(None, None, None)
        with turns:
            entered.append("again")
        thread.join()
    assert entered == ["other", "again"] * 50


def test_one_thread_is_inside_at_a_time() -> None:
    turns = _core.Turns()
    inside = 0
    most = 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(100):
            with turns:
                inside += 1
                most = max(most, inside)
                time.sleep(0)  # other threads run
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside, turns.num_waiting) == (1, 0, 0)


def test_an_owner_that_is_refused_stays_inside() -> None:
    turns = _core.Turns()
    with turns:
        with pytest.raises(EngineBusyError):
            turns.__enter__()
        thread = threading.Thread(target=turns.__enter__)
        thread.start()
        wait_for_queue(turns, 1)
    thread.join()


SCRIPT = """
import os, sys, threading
from forerun import EngineBusyError, _core
turns = _core.Turns()
inside, leave = threading.Event(), threading.Event()
def hold():
    with turns:
        inside.set()
        leave.wait()
def wait_for_queue(length):
    while turns.num_waiting < length:
        threading.Event().wait(0.001)
def enter_and_leave():
    with turns:
        pass
def in_child(run):
    pid = os.fork()
    if pid == 0:
        run()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def refused():
    try:
        enter_and_leave()
    except EngineBusyError as error:
        assert "forked while another thread" in str(error), error
        return
    os._exit(1)
{body}
enter_and_leave()
"""
FORKS = {
    "free": "in_child(enter_and_leave)",
    "held_by_another_thread": """
thread = threading.Thread(target=hold)
thread.start()
inside.wait()
in_child(refused)
in_child(lambda: in_child(refused))
leave.set()
thread.join()
in_child(enter_and_leave)
""",
    # Nobody in the child waits any more.
    "held_by_the_thread_that_forks": """
threads = [threading.Thread(target=enter_and_leave) for _ in range(3)]
turns.__enter__()
for thread in threads:
    thread.start()
wait_for_queue(3)
def leave_and_enter():
    try:
        turns.__enter__()
        os._exit(1)
    except EngineBusyError:
        turns.__exit__(None, None, None)
    assert turns.num_waiting == 0
    enter_and_leave()
    other = threading.Thread(target=enter_and_leave)
    other.start()
    other.join()
in_child(leave_and_enter)
turns.__exit__(None, None, None)
for thread in threads:
    thread.join()
""",
    "dropped_in_the_child": """
thread = threading.Thread(target=hold)
thread.start()
inside.wait()
waiting = threading.Thread(target=enter_and_leave)
waiting.start()
wait_for_queue(1)
def drop():
    global turns
    del turns
in_child(drop)
leave.set()
waiting.join()
""",
}


@pytest.mark.parametrize("name", FORKS)
def test_the_child_of_a_fork_has_a_lock_of_its_own(name: str) -> None:
    script = SCRIPT.format(body=FORKS[name])
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
