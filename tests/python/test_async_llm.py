"""AsyncLLM: outputs, one token a delta, cancellation, deadlines, a bounded queue, its end."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from forerun import (
    LLM,
    AsyncLLM,
    CompletionDelta,
    DeadlineExceededError,
    EngineBusyError,
    EngineClosedError,
    InvalidArgumentError,
    QueueFullError,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
)

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
PROMPTS = [[index, 7] for index in range(8)]
SUFFIX = {"method": "suffix", "adaptive": False}  # the time of a pass must not matter


def delay(token_ids: list[int], logits: Any) -> Any:
    time.sleep(0.01)
    return logits


SLOW = SamplingParams(max_tokens=400, ignore_eos=True, logits_processors=[delay])


def loaded(tiny_dir: Path, **options: Any) -> AsyncLLM:
    return AsyncLLM(
        tiny_dir, **{"max_num_seqs": 4, "check_invariants": True, "num_threads": 1, **options}
    )


@pytest.fixture(scope="module")
def plain(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, num_threads=1)


def run(
    tiny_dir: Path, main: Callable[[AsyncLLM], Coroutine[Any, Any, Any]], **options: Any
) -> Any:
    async def whole() -> Any:
        async with loaded(tiny_dir, **options) as llm:
            return await asyncio.wait_for(main(llm), 120)

    return asyncio.run(whole())


async def settled(llm: AsyncLLM) -> None:
    """Waits until no request holds a block."""
    deadline = time.monotonic() + 20
    while llm.metrics().num_held_blocks > 0 or llm.metrics().num_running_requests > 0:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def shape(output: RequestOutput) -> list[tuple[Any, ...]]:
    return [(o.index, o.text, o.token_ids, o.finish_reason, o.logprobs) for o in output.outputs]


def random_params(choose: random.Random) -> SamplingParams:
    temperature = choose.choice((0.0, 0.7, 1.5))
    return SamplingParams(
        n=choose.choice((1, 1, 2, 3)) if temperature > 0 else 1,
        temperature=temperature,
        seed=choose.randrange(100),
        max_tokens=choose.randrange(1, 40),
        logprobs=choose.choice((None, None, 0, 2)),
        prompt_logprobs=choose.choice((None, None, None, 1)),
        stop=choose.choice((None, ["e"], ["th", "q"])),
        repetition_penalty=choose.choice((1.0, 1.2)),
        structured_outputs=choose.choice(
            (None, None, StructuredOutputsParams(regex="[a-c]{0,6}(é|☃)+"))
        ),
    )


def test_an_output_that_is_read_whole_rarely_wakes_its_event_loop(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_wakes = 0
    take = AsyncLLM._take

    def counted(self: AsyncLLM) -> None:
        nonlocal num_wakes
        num_wakes += 1
        take(self)

    monkeypatch.setattr(AsyncLLM, "_take", counted)
    params = SLOW.clone()
    params.n, params.max_tokens, params.temperature = 2, 100, 1.0

    async def main(llm: AsyncLLM) -> None:
        nonlocal num_wakes
        output = await llm.generate([3, 7], params)
        assert [len(each.token_ids) for each in output.outputs] == [100, 100]
        assert num_wakes <= 1 + 200 // 32 + 2  # one before it waited, and the two ends
        num_wakes = 0
        whole, token = llm.stream([3, 7], params), llm.stream([5], GREEDY)
        whole.read_late()
        assert len([delta async for delta in token]) == 40
        assert num_wakes > 10  # its tokens do not wait as its neighbour's do
        await whole.aclose()
        output = await llm.generate([5], GREEDY)
        assert len(output.outputs[0].token_ids) == 40

    run(tiny_dir, main)


def test_concurrent_outputs_equal_those_of_llm_with_any_speculation(
    tiny_dir: Path, plain: LLM
) -> None:
    choose = random.Random(0)
    cases = [
        ([choose.randrange(200) for _ in range(choose.randrange(1, 30))], random_params(choose))
        for _ in range(60)
    ]
    expected = [shape(plain.generate(p, params, use_tqdm=False)[0]) for p, params in cases]

    async def main(llm: AsyncLLM) -> list[Any]:
        outputs = await asyncio.gather(*(llm.generate(p, params) for p, params in cases))
        return [shape(output) for output in outputs]

    for config in (None, SUFFIX):
        assert run(tiny_dir, main, speculative_config=config) == expected


async def deltas_of(llm: AsyncLLM, prompt: Any, params: SamplingParams) -> list[CompletionDelta]:
    async with llm.stream(prompt, params) as stream:
        return [delta async for delta in stream]


async def read(stream: AsyncIterator[CompletionDelta], into: list[CompletionDelta]) -> None:
    async for delta in stream:
        into.append(delta)


def sequences(deltas: list[CompletionDelta], n: int) -> list[list[tuple[Any, ...]]]:
    return [
        [
            (d.text, d.token_ids, d.finish_reason, d.logprobs)
            for d in deltas
            if d.completion_index == i
        ]
        for i in range(n)
    ]


def test_a_stream_has_one_delta_a_token_and_the_same_ones_with_speculation(tiny_dir: Path) -> None:
    choose = random.Random(1)
    cases = [(PROMPTS[i % 8] * choose.randrange(1, 9), random_params(choose)) for i in range(60)]

    async def main(llm: AsyncLLM) -> tuple[list[Any], int]:
        streams = await asyncio.gather(*(deltas_of(llm, p, params) for p, params in cases))
        num_drafted = 0
        for (_, params), deltas in zip(cases, streams, strict=True):
            output = deltas[-1].output
            assert output is not None
            assert all(delta.output is None for delta in deltas[:-1])
            for completion, deltas_of_one in zip(
                output.outputs, sequences(deltas, params.n), strict=True
            ):
                assert all(len(ids) == 1 for _, ids, *_ in deltas_of_one)
                assert [ids[0] for _, ids, *_ in deltas_of_one] == completion.token_ids
                assert "".join(text for text, *_ in deltas_of_one) == completion.text
                reasons = [reason for _, _, reason, _ in deltas_of_one]
                assert reasons == [None] * (len(reasons) - 1) + [completion.finish_reason]
            num_drafted += sum(delta.is_drafted for delta in deltas)
        assert num_drafted == llm.metrics().spec_decode.num_accepted_tokens
        return [sequences(d, c[1].n) for d, c in zip(streams, cases, strict=True)], num_drafted

    expected, none = run(tiny_dir, main)
    found, some = run(tiny_dir, main, speculative_config=SUFFIX)
    assert found == expected
    assert none == 0 < some


def test_leaving_a_stream_in_any_way_cancels_its_request(tiny_dir: Path) -> None:
    async def first(stream: AsyncIterator[CompletionDelta]) -> None:
        async for _ in stream:
            return

    async def main(llm: AsyncLLM) -> None:
        async with llm.stream([1], ENDLESS) as stream:
            await first(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await settled(llm)
        closed = llm.stream([2], ENDLESS)
        await first(closed)
        await closed.aclose()
        await settled(llm)
        await first(llm.stream([3], ENDLESS))  # dropped
        gc.collect()
        await settled(llm)
        for coroutine in (llm.generate([4], ENDLESS), deltas_of(llm, [5], ENDLESS)):
            task = asyncio.create_task(coroutine)
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await settled(llm)
        finished = llm.metrics().num_generated_tokens
        await asyncio.sleep(0.05)
        assert llm.metrics().num_generated_tokens == finished
        assert len((await llm.generate([1], GREEDY)).outputs[0].token_ids) == 40

    run(tiny_dir, main)


def test_neighbours_of_cancelled_requests_keep_their_outputs(tiny_dir: Path, plain: LLM) -> None:
    expected = [shape(o) for o in plain.generate(PROMPTS, GREEDY, use_tqdm=False)]
    choose = random.Random(2)

    async def leave(llm: AsyncLLM, prompt: list[int], count: int) -> None:
        async with llm.stream(prompt, ENDLESS) as stream:
            async for _ in stream:
                count -= 1
                if count <= 0:
                    return

    async def main(llm: AsyncLLM) -> list[Any]:
        leaving = [leave(llm, [choose.randrange(99)], choose.randrange(9)) for _ in range(24)]
        outputs = await asyncio.gather(*(llm.generate(p, GREEDY) for p in PROMPTS), *leaving)
        await settled(llm)
        return [shape(output) for output in outputs[: len(PROMPTS)]]

    assert run(tiny_dir, main, speculative_config=SUFFIX) == expected


def test_a_missed_deadline_raises_after_what_was_emitted(tiny_dir: Path) -> None:
    async def main(llm: AsyncLLM) -> None:
        seen: list[CompletionDelta] = []
        stream = llm.stream([1], SLOW, timeout=0.15)
        with pytest.raises(DeadlineExceededError) as caught:
            await read(stream, seen)
        assert seen
        assert caught.value.timeout == 0.15
        (output,) = caught.value.outputs
        assert output.outputs[0].finish_reason == "deadline"
        assert output.outputs[0].token_ids == [token for d in seen for token in d.token_ids]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(DeadlineExceededError):
            await llm.generate([1], SLOW, timeout=0.05)
        await settled(llm)
        assert (await llm.generate([1], GREEDY, timeout=60)).finished

    run(tiny_dir, main)


def test_a_full_queue_refuses_and_takes_again_once_there_is_room(tiny_dir: Path) -> None:
    async def main(llm: AsyncLLM) -> None:
        streams = [llm.stream([i], ENDLESS) for i in range(4)]  # 2 run, 2 wait
        with pytest.raises(QueueFullError) as caught:
            llm.stream([9], GREEDY)
        assert caught.value.limit == 2
        with pytest.raises(QueueFullError):
            await llm.generate([9], GREEDY)
        await streams[3].aclose()
        assert (await llm.generate([9], GREEDY)).finished
        assert llm.metrics().num_finished_requests >= 1
        for stream in streams:
            await stream.aclose()

    run(tiny_dir, main, max_num_seqs=2, max_waiting_requests=2)


def test_every_completion_of_a_request_needs_room(tiny_dir: Path) -> None:
    def of(n: int) -> SamplingParams:
        return SamplingParams(n=n, max_tokens=400, ignore_eos=True)

    async def main(llm: AsyncLLM) -> None:
        with pytest.raises(InvalidArgumentError, match="n: got 5 completions; expected at most 4"):
            llm.stream([1], of(5))
        with pytest.raises(InvalidArgumentError, match="num_completions: got 5 "):
            llm.check_room(5)
        stream = llm.stream([1], of(2))
        with pytest.raises(QueueFullError):
            llm.stream([1], of(3))
        with pytest.raises(QueueFullError):
            llm.check_room(3)
        llm.check_room(2)
        async with stream, llm.stream([1], of(2)) as other:
            await anext(other)
        await settled(llm)

    run(tiny_dir, main, max_num_seqs=2, max_waiting_requests=2)


def test_a_prepared_prompt_may_be_streamed_any_number_of_times(
    tiny_dir: Path, plain: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = GREEDY.clone()
    params.structured_outputs = StructuredOutputsParams(regex="[a-c]{2,9}")
    expected = [shape(o) for o in plain.generate(PROMPTS, params, use_tqdm=False)]

    async def main(llm: AsyncLLM) -> None:
        prepared = await asyncio.to_thread(llm.prepare, PROMPTS, params)
        monkeypatch.setattr(llm._grammars, "compile", None)  # compiles no more
        for _ in range(2):
            outputs = await asyncio.gather(*map(llm.generate, prepared))
            assert [shape(output) for output in outputs] == expected
        with pytest.raises(InvalidArgumentError, match="sampling_params"):
            llm.stream(prepared[0], params)
        with pytest.raises(InvalidArgumentError, match=r"prompts\[1\]"):
            llm.prepare([[1], [object()]], GREEDY)

    run(tiny_dir, main)


def test_lower_priorities_run_first(tiny_dir: Path) -> None:
    async def main(llm: AsyncLLM) -> None:
        done = []

        async def generate(priority: int) -> None:
            await llm.generate([priority], GREEDY, priority=priority)
            done.append(priority)

        running = llm.stream([1], ENDLESS, priority=-1)
        await anext(running)
        tasks = [asyncio.create_task(generate(priority)) for priority in (3, 1, 2)]
        await asyncio.sleep(0)
        await running.aclose()
        await asyncio.gather(*tasks)
        assert done == [1, 2, 3]

    run(tiny_dir, main, max_num_seqs=1, scheduling_policy="priority")


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("sampling_params", lambda llm: llm.stream([1], {"max_tokens": 3})),
        ("timeout", lambda llm: llm.stream([1], GREEDY, timeout=0)),
        ("request_id", lambda llm: llm.stream([1], GREEDY, request_id=7)),
        ("priority", lambda llm: llm.stream([1], GREEDY, priority="high")),
        ("priority", lambda llm: llm.stream([1], GREEDY, priority=1)),
        ("prompt", lambda llm: llm.stream({"text": "a"}, GREEDY)),
        ("prompt", lambda llm: llm.stream([10**6], GREEDY)),
        ("prompt", lambda llm: llm.stream([1] * 10**4, GREEDY)),
        ("beams", lambda llm: llm.stream([1], GREEDY, beams=2)),
    ],
)
def test_invalid_requests_are_refused_at_once(tiny_dir: Path, field: str, call: Any) -> None:
    async def main(llm: AsyncLLM) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            call(llm)
        assert field in caught.value.field
        assert (await llm.generate([1], GREEDY)).finished

    run(tiny_dir, main)


def test_a_request_whose_processor_fails_ends_alone(tiny_dir: Path, plain: LLM) -> None:
    def fail(token_ids: list[int], logits: Any) -> Any:
        if len(token_ids) == 5:
            raise ValueError("on purpose")
        return logits

    failing = SamplingParams(max_tokens=40, ignore_eos=True, logits_processors=[fail])
    expected = shape(plain.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0])

    async def main(llm: AsyncLLM) -> list[Any]:
        good, bad = await asyncio.gather(
            llm.generate(PROMPTS[0], GREEDY), deltas_of(llm, PROMPTS[1], failing)
        )
        assert shape(good) == expected
        assert [len(delta.token_ids) for delta in bad] == [1] * 5 + [0]
        assert [delta.finish_reason for delta in bad] == [None] * 5 + ["error"]
        assert bad[-1].output is not None
        assert "on purpose" in (bad[-1].output.error or "")
        return sequences(bad, 1)

    assert run(tiny_dir, main) == run(tiny_dir, main, speculative_config=SUFFIX)


def test_closing_ends_requests_with_an_error_and_refuses_others(tiny_dir: Path) -> None:
    async def main() -> None:
        llm = loaded(tiny_dir)
        stream = llm.stream([1], ENDLESS)
        await anext(stream)
        waiting = asyncio.create_task(llm.generate([2], ENDLESS))
        await asyncio.sleep(0)
        await llm.aclose()
        with pytest.raises(EngineClosedError):
            await read(stream, [])
        with pytest.raises(EngineClosedError):
            await waiting
        with pytest.raises(EngineClosedError):
            llm.stream([1], GREEDY)
        await llm.aclose()

    asyncio.run(main())


def test_event_loops_use_it_one_after_the_other(tiny_dir: Path) -> None:
    llm = loaded(tiny_dir)
    kept = []

    async def leave_open() -> list[int]:
        kept.append(llm.stream([3], ENDLESS))
        return (await llm.generate([1], GREEDY)).outputs[0].token_ids

    async def call_from_another_loop() -> None:
        async with llm.stream([1], ENDLESS) as stream:
            await anext(stream)
            with pytest.raises(EngineBusyError, match="event loop"):
                await asyncio.to_thread(asyncio.run, llm.generate([1], GREEDY))

    assert asyncio.run(leave_open()) == asyncio.run(leave_open())
    asyncio.run(call_from_another_loop())
    assert len(asyncio.run(leave_open())) == 40
    llm.close()


def test_the_process_uses_no_cpu_while_idle(tiny_dir: Path) -> None:
    async def main(llm: AsyncLLM) -> None:
        await llm.generate([1], GREEDY)
        stream = llm.stream([1], ENDLESS)
        await anext(stream)
        await stream.aclose()
        await settled(llm)
        before = time.process_time()
        await asyncio.sleep(1)
        assert time.process_time() - before < 0.02

    run(tiny_dir, main, num_threads=2)
