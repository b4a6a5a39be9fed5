"""One LLM and many threads, re-entrant calls, forks, and threads that outlive the interpreter."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alarms import interrupt

from forerun import LLM, EngineBusyError, InvalidArgumentError, SamplingParams, _core

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
PROMPTS = [[index, 7] for index in range(8)]


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(
        tiny_dir,
        max_num_seqs=4,
        check_invariants=True,
        speculative_config={"method": "suffix"},
    )


def ids(llm: LLM, prompt: Any, params: SamplingParams = GREEDY) -> list[int]:
    return llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids


def test_threads_that_call_generate_get_their_own_outputs(llm: LLM) -> None:
    expected = [ids(llm, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: ids(llm, prompt), PROMPTS * 4)) == expected * 4


def test_streams_run_beside_other_threads(llm: LLM) -> None:
    expected = [ids(llm, prompt) for prompt in PROMPTS]

    def read(prompt: list[int]) -> list[int]:
        return [token for delta in llm.stream([prompt], GREEDY) for token in delta.token_ids]

    with ThreadPoolExecutor(6) as pool:
        streamed = pool.map(read, PROMPTS * 2)
        whole = pool.map(lambda prompt: ids(llm, prompt), PROMPTS * 2)
        assert list(streamed) == list(whole) == expected * 2


def test_threads_that_share_a_stream_divide_its_deltas(llm: LLM) -> None:
    expected = ids(llm, PROMPTS[0])
    stream = llm.stream([PROMPTS[0]], GREEDY)
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda _: list(stream), range(3)))
    assert sorted(t for part in parts for delta in part for t in delta.token_ids) == sorted(
        expected
    )
    assert sum(delta.output is not None for part in parts for delta in part) == 1


def test_other_calls_of_an_llm_are_safe_beside_a_step(llm: LLM) -> None:
    expected = [ids(llm, prompt) for prompt in PROMPTS]
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            llm.metrics()
            with llm.stream([PROMPTS[3]], GREEDY) as stream:
                next(stream)

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(3):
            assert [ids(llm, prompt) for prompt in PROMPTS] == expected
    finally:
        done.set()
        thread.join()
    llm.reset_caches()


def test_calls_in_threads_of_asyncio_take_turns(llm: LLM) -> None:
    async def both() -> list[list[int]]:
        return await asyncio.gather(*(asyncio.to_thread(ids, llm, p) for p in PROMPTS[:2]))

    assert asyncio.run(both()) == [ids(llm, prompt) for prompt in PROMPTS[:2]]


def test_an_interrupt_ends_the_wait_for_a_turn(llm: LLM) -> None:
    turns = _core.Turns()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with turns:
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        assert interrupt(turns.__enter__, 0.01)
    finally:
        leave.set()
        thread.join()
    with turns, pytest.raises(EngineBusyError), turns:
        pass
    with turns:
        pass


def test_a_hook_that_calls_its_model_is_refused(llm: LLM) -> None:
    expected = ids(llm, PROMPTS[0])
    stream = llm.stream([PROMPTS[1]], GREEDY)
    calls = {
        "generate": lambda: ids(llm, PROMPTS[2]),
        "stream": lambda: llm.stream([PROMPTS[2]], GREEDY),
        "next": lambda: next(stream),
        "reset_caches": llm.reset_caches,
        "chat": lambda: llm.chat([{"role": "user", "content": "low"}], GREEDY),
    }
    for name, call in calls.items():
        refused = []

        def processor(token_ids: list[int], logits: Any) -> None:
            try:
                call()  # noqa: B023
            except EngineBusyError as error:
                refused.append(error)  # noqa: B023

        params = SamplingParams(
            temperature=0, max_tokens=40, ignore_eos=True, logits_processors=[processor]
        )
        assert ids(llm, PROMPTS[0], params) == expected, name
        assert refused, name
    # What the hook does not catch fails its request alone.
    params = SamplingParams(max_tokens=5, logits_processors=[lambda *_: ids(llm, PROMPTS[2])])
    output = llm.generate([PROMPTS[0]], params, use_tqdm=False)[0]
    assert output.outputs[0].finish_reason == "error"
    assert "EngineBusyError" in (output.error or "")
    # Closing a stream, metrics and limits are no steps.
    params = SamplingParams(max_tokens=5, logits_processors=[lambda *_: stream.close()])
    assert len(ids(llm, PROMPTS[0], params)) > 0
    llm.reset_caches()


def test_a_constraint_that_calls_its_engine_is_refused(tiny_dir: Path) -> None:
    options = _core.EngineOptions()
    options.model = str(tiny_dir)
    engine = _core.Engine(options)
    errors: list[Exception] = []

    class Constraint:
        def restart(self) -> None: ...
        def advance(self, token_ids: list[int]) -> int:
            return len(token_ids)

        def rollback(self, num_tokens: int) -> None: ...
        def forced(self) -> list[int]:
            return []

        def after(self, token_ids: list[int], parents: list[int]) -> list[Any]:
            return [self] * (1 + len(token_ids))

        def check(self) -> None: ...
        def fill_masks(self, states: list[Any], address: int, row_bytes: int) -> None:
            for call in (engine.step, engine.reset_caches):
                with pytest.raises(EngineBusyError) as error:
                    call()
                errors.append(error.value)
            ctypes.memset(address, 0xFF, len(states) * row_bytes)

    params = _core.SamplingParams()
    params.max_tokens = 3
    engine.submit([1, 2], params, constraint=Constraint())
    tokens = []
    while engine.has_unfinished():
        for update in engine.step():
            assert update.error == ""
            tokens += update.new_tokens
            assert [u.new_tokens for u in engine.updates()] == [update.new_tokens]
    assert len(tokens) == 3
    assert len(errors) >= 6


FORK = """
import multiprocessing, os, sys, threading, time
import forerun
llm = forerun.LLM({model!r}, num_threads=2)
params = forerun.SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
def ids():
    return llm.generate([[5, 6]], params, use_tqdm=False)[0].outputs[0].token_ids
expected = ids()
{extra}
"""
FORKS = {
    "exit": "pid = os.fork()\nif pid == 0:\n    sys.exit(0)",
    "use": "pid = os.fork()\nif pid == 0:\n    sys.exit(ids() != expected)",
    # Threads that sleep, on the condition variable that the child must not destroy.
    "idle": "time.sleep(0.1)\npid = os.fork()\nif pid == 0:\n    ids()\n    sys.exit(0)",
    "never_used": "time.sleep(0.1)\npid = os.fork()\nif pid == 0:\n    del llm\n    sys.exit(0)",
    "in_a_step": (
        "threading.Thread(target=lambda: [ids() for _ in range(20)], daemon=True).start()\n"
        "time.sleep(0.05)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        sys.exit(ids() != expected)\n"
        "    except forerun.EngineBusyError:\n"
        "        sys.exit(0)"
    ),
}


@pytest.mark.parametrize("name", FORKS)
def test_the_child_of_a_fork_uses_the_model_and_ends(tiny_dir: Path, name: str) -> None:
    extra = (
        FORKS[name]
        + "\n_, status = os.waitpid(pid, 0)\nassert status == 0\nassert ids() == expected"
    )
    subprocess.run(
        [sys.executable, "-c", FORK.format(model=str(tiny_dir), extra=extra)],
        check=True,
        timeout=60,
    )


def test_children_of_multiprocessing_use_the_model(tiny_dir: Path) -> None:
    extra = """
children = multiprocessing.get_context("fork")
with children.Pool(2) as pool:
    assert pool.starmap(ids, [()] * 4) == [expected] * 4
"""
    subprocess.run(
        [sys.executable, "-c", FORK.format(model=str(tiny_dir), extra=extra)],
        check=True,
        timeout=60,
    )


DAEMON = """
import threading, time
import forerun
llm = forerun.LLM({model!r}, num_threads=2)
options = {options}
params = forerun.SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, **options)
def run():
    while True:
        llm.generate([[5, 6]] * 4, params, use_tqdm=False)
for _ in range(3):
    threading.Thread(target=run, daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize(
    "options",
    [
        "{}",
        "{'logits_processors': [lambda token_ids, logits: None]}",
        "{'structured_outputs': forerun.StructuredOutputsParams(regex='[a-z]{500}')}",
    ],
)
def test_a_process_ends_while_daemon_threads_generate(tiny_dir: Path, options: str) -> None:
    for _ in range(2):
        script = DAEMON.format(model=str(tiny_dir), options=options)
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


THREADS = """
import resource
from forerun import InvalidArgumentError, _core
options = _core.EngineOptions()
options.model = {model!r}
with open("/proc/self/statm") as file:
    num_bytes = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (num_bytes + (300 << 20),) * 2)
options.num_threads = 300
try:
    _core.Engine(options)
except InvalidArgumentError as error:
    assert error.field == "num_threads", error
    assert "ran when one more failed" in error.expected, error
else:
    raise AssertionError("all threads started")
options.num_threads = 2
_core.Engine(options)
"""


def test_threads_that_do_not_start_are_an_error_with_their_number(tiny_dir: Path) -> None:
    script = THREADS.format(model=str(tiny_dir))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"num_threads": 1025}, "num_threads", "at most 1024"),
        ({"max_num_seqs": 2**31 - 1, "max_num_batched_tokens": 2**31 - 1}, "max_num_seqs", "65536"),
        ({"max_num_batched_tokens": 2**31 - 1}, "max_num_batched_tokens", "1048576"),
        ({"kv_cache_memory_bytes": 1 << 50}, "kv_cache_memory_bytes", "available"),
        ({"kv_cache_memory_bytes": 2**63 - 1}, "kv_cache_memory_bytes", "available"),
    ],
)
def test_what_no_machine_has_is_refused_with_the_reason(
    tiny_dir: Path, options: dict[str, int], field: str, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        LLM(tiny_dir, **options)
    assert error.value.field == field
    assert reason in error.value.expected


def test_a_length_that_is_cut_is_said_in_the_log(
    tiny_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "forerun")
    whole = LLM(tiny_dir)
    assert whole.limits.max_model_len == whole.limits.model_max_len == 512
    asked = LLM(tiny_dir, max_model_len=64)
    assert (asked.limits.max_model_len, asked.limits.model_max_len) == (64, 512)
    assert "max_model_len" not in caplog.text
    cut = LLM(tiny_dir, kv_cache_memory_bytes=1 << 15)
    assert cut.limits.max_model_len < 512
    assert f"max_model_len is {cut.limits.max_model_len}, not the model's 512" in caplog.text
