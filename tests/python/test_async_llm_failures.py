"""AsyncLLM after steps that failed: which requests fail, what runs then, what its health is."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from test_async_llm import ENDLESS, GREEDY, PROMPTS, read, run, settled

from forerun import AsyncLLM, EngineClosedError, InternalError, SamplingParams
from forerun._core import FinishReason


def interrupt(token_ids: list[int], logits: Any) -> Any:
    raise KeyboardInterrupt("in the middle of a step")


def test_health_is_that_of_the_last_step(tiny_dir: Path) -> None:
    async def main(llm: AsyncLLM) -> None:
        llm.check_health()
        params = SamplingParams(max_tokens=4, logits_processors=[interrupt])
        with pytest.raises(KeyboardInterrupt):
            await llm.generate(PROMPTS[0], params)
        with pytest.raises(InternalError, match="KeyboardInterrupt: in the middle of a step"):
            llm.check_health()
        await llm.generate(PROMPTS[0], GREEDY)
        llm.check_health()
        llm.close()
        with pytest.raises(EngineClosedError):
            llm.check_health()

    run(tiny_dir, main)


@pytest.mark.parametrize("after", ["aborts", "tokens", "some time"])
def test_a_failed_step_is_told_for_a_while_or_until_one_makes_tokens(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    seconds = 0.0
    clock = SimpleNamespace(monotonic=lambda: seconds)
    monkeypatch.setattr("forerun.async_llm.time", clock)

    async def main(llm: AsyncLLM) -> None:
        nonlocal seconds
        params = SamplingParams(max_tokens=4, logits_processors=[interrupt])
        with pytest.raises(KeyboardInterrupt):
            await llm.generate(PROMPTS[0], params)
        seconds = 9.9
        tokens = [5] if after == "tokens" else []
        update = SimpleNamespace(id=-1, finish_reason=FinishReason.ABORT, new_tokens=tokens)
        if after != "some time":
            with mock.patch.object(llm, "_loop") as loop:
                loop.take.return_value = [update], None
                llm._take()
        if after != "tokens":
            with pytest.raises(InternalError, match="in the middle of a step"):
                llm.check_health()
        seconds = 10.0 if after == "some time" else seconds
        if after != "aborts":
            llm.check_health()

    run(tiny_dir, main)


def test_an_exception_of_a_step_reaches_every_request_and_the_next_one_runs(
    tiny_dir: Path,
) -> None:
    num_failures = 0

    def interrupt(token_ids: list[int], logits: Any) -> Any:
        nonlocal num_failures
        if len(token_ids) == 5:
            num_failures += 1
            raise KeyboardInterrupt("on purpose")
        return logits

    params = SamplingParams(max_tokens=40, ignore_eos=True, logits_processors=[interrupt])

    async def main(llm: AsyncLLM) -> None:
        cancelled: list[list[int]] = []
        loop = mock.Mock(wraps=llm._loop)
        loop.cancel.side_effect = lambda ids: (cancelled.append(ids), llm_loop.cancel(ids))
        llm_loop, llm._loop = llm._loop, loop
        streams = [*(llm.stream([i], ENDLESS) for i in range(30)), llm.stream([99], params)]
        for stream in streams:
            with pytest.raises(KeyboardInterrupt, match="on purpose"):
                await read(stream, [])
        # All at once: the step is not tried again for those not yet told.
        assert num_failures == 1
        assert cancelled == [[stream._request.completions[0].id for stream in streams]]
        llm._loop = llm_loop
        await settled(llm)
        assert (await llm.generate([1], GREEDY)).finished

    run(tiny_dir, main, max_num_seqs=40)


def test_requests_made_since_the_step_failed_do_not_fail_with_it(tiny_dir: Path) -> None:
    tries = threading.Semaphore(0)

    def fail(token_ids: list[int], logits: Any) -> Any:
        tries.release()
        raise KeyboardInterrupt("on purpose")

    failing = SamplingParams(max_tokens=4, logits_processors=[fail])

    async def main(llm: AsyncLLM) -> None:
        expected = (await llm.generate(PROMPTS[1], GREEDY)).outputs[0].token_ids
        failed = llm.stream(PROMPTS[0], failing)
        tries.acquire()
        # The event loop has not heard of the failure yet.
        since = llm.stream(PROMPTS[1], GREEDY)
        with pytest.raises(KeyboardInterrupt, match="on purpose"):
            await failed.wait_output()
        assert (await since.wait_output()).outputs[0].token_ids == expected
        assert not tries.acquire(blocking=False)

    run(tiny_dir, main)


def test_a_request_made_during_the_step_that_fails_does_not_fail_with_it(tiny_dir: Path) -> None:
    is_running, may_fail = threading.Event(), threading.Event()

    def fail(token_ids: list[int], logits: Any) -> Any:
        is_running.set()
        may_fail.wait()
        raise KeyboardInterrupt("on purpose")

    failing = SamplingParams(max_tokens=4, logits_processors=[fail])

    async def main(llm: AsyncLLM) -> None:
        expected = (await llm.generate(PROMPTS[1], GREEDY)).outputs[0].token_ids
        failed = llm.stream(PROMPTS[0], failing)
        is_running.wait()
        since = llm.stream(PROMPTS[1], GREEDY)
        may_fail.set()
        with pytest.raises(KeyboardInterrupt, match="on purpose"):
            await failed.wait_output()
        assert (await since.wait_output()).outputs[0].token_ids == expected

    run(tiny_dir, main)


def test_requests_whose_steps_fail_one_after_the_other_all_fail(tiny_dir: Path) -> None:
    tries = threading.Semaphore(0)

    def fail(token_ids: list[int], logits: Any) -> Any:
        tries.release()
        raise KeyboardInterrupt("on purpose")

    failing = SamplingParams(max_tokens=4, logits_processors=[fail])

    async def main(llm: AsyncLLM) -> None:
        streams = []
        for prompt in PROMPTS[:3]:
            streams.append(llm.stream(prompt, failing))
            tries.acquire()
        for stream in streams:
            with pytest.raises(KeyboardInterrupt, match="on purpose"):
                await stream.wait_output()
        assert (await llm.generate(PROMPTS[1], GREEDY)).finished

    run(tiny_dir, main)
