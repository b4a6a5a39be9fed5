"""Deadlines and the bounded queue of an LLM, which an AsyncLLM shares."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from forerun import (
    LLM,
    CompletionDelta,
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
    RequestOutput,
    SamplingParams,
)
from forerun.beam_search import BeamSearchParams

SECONDS = 1.0
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
MESSAGES = [{"role": "user", "content": "x"}]
TEMPLATE = "{{ messages[0].content }}"
SHORT = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)


def sleeping(num_tokens: int) -> SamplingParams:
    """Sleeps through the timeout after so many tokens."""

    def sleep(token_ids: list[int], logits: Any) -> Any:
        if len(token_ids) == num_tokens:
            time.sleep(SECONDS)
        return logits

    params = ENDLESS.clone()
    params.logits_processors = [sleep]
    return params


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(
        tiny_dir,
        max_num_seqs=2,
        max_waiting_requests=3,
        check_invariants=True,
        num_threads=1,
        speculative_config={"method": "suffix"},
    )


@pytest.fixture(autouse=True)
def _leaves_nothing(llm: LLM) -> Iterator[None]:
    yield
    assert llm.reset_prefix_cache()
    assert llm.metrics().num_held_blocks == 0


def token_ids(output: RequestOutput) -> list[int]:
    return output.outputs[0].token_ids


def test_generate_has_everything_that_was_generated_in_time(llm: LLM) -> None:
    prompts = [[1], [2], [3]]
    whole = [token_ids(o) for o in llm.generate(prompts, ENDLESS, use_tqdm=False)]
    count = llm.metrics().num_finished_by_reason["deadline"]
    params = [SHORT, sleeping(5), ENDLESS]
    with pytest.raises(DeadlineExceededError) as caught:
        llm.generate(prompts, params, use_tqdm=False, timeout=SECONDS)
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.timeout == SECONDS
    assert str(error) == "not finished within the timeout of 1 s"
    reasons = [output.outputs[0].finish_reason for output in error.outputs]
    assert reasons == ["length", "deadline", "deadline"]
    assert [output.prompt_token_ids for output in error.outputs] == prompts
    for output, ids in zip(error.outputs, whole, strict=True):
        assert token_ids(output) == ids[: len(token_ids(output))]
    assert len(token_ids(error.outputs[1])) > 5
    assert llm.metrics().num_finished_by_reason["deadline"] == count + 2
    assert isinstance(caught.value, TimeoutError)


def test_a_prompt_that_waits_past_the_deadline_has_no_token(llm: LLM) -> None:
    params = [sleeping(3), ENDLESS, ENDLESS]
    with pytest.raises(DeadlineExceededError) as caught:
        llm.generate([[1], [2], [3]], params, use_tqdm=False, timeout=SECONDS)
    assert [len(token_ids(output)) > 0 for output in caught.value.outputs] == [True, True, False]
    assert caught.value.outputs[2].outputs[0].text == ""


def test_a_stream_raises_after_the_deltas_of_what_was_emitted(llm: LLM) -> None:
    deltas: list[CompletionDelta] = []
    stream = llm.stream([[1], [2]], [SHORT, sleeping(5)], timeout=SECONDS)
    with pytest.raises(DeadlineExceededError) as caught:
        deltas.extend(stream)
    outputs = caught.value.outputs
    for index, output in enumerate(outputs):
        found = [token for d in deltas if d.index == index for token in d.token_ids]
        assert found == token_ids(output)
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["length"]
    assert [d.output for d in deltas if d.output] == [outputs[0]]
    with pytest.raises(DeadlineExceededError):  # an interrupted call may have lost the first
        next(stream)
    stream.close()
    assert next(stream, None) is None


def test_of_several_completions_those_that_finished_are_whole(llm: LLM) -> None:
    first = sleeping(5)
    first.temperature, first.n = 1.0, 2
    with pytest.raises(DeadlineExceededError) as caught:
        llm.generate([1], first, use_tqdm=False, timeout=SECONDS)
    (output,) = caught.value.outputs
    assert [each.index for each in output.outputs] == [0, 1]
    assert {each.finish_reason for each in output.outputs} == {"deadline"}
    assert output.metrics is not None


def test_what_finishes_in_time_is_returned_as_always(llm: LLM) -> None:
    expected = token_ids(llm.generate([1], GREEDY, use_tqdm=False)[0])
    assert token_ids(llm.generate([1], GREEDY, use_tqdm=False, timeout=3600)[0]) == expected
    assert token_ids(llm.generate([1], GREEDY, use_tqdm=False, timeout=1e300)[0]) == expected
    streamed = llm.stream([1], GREEDY, timeout=3600)
    assert [token for delta in streamed for token in delta.token_ids] == expected


def test_chat_takes_a_timeout(llm: LLM) -> None:
    with pytest.raises(DeadlineExceededError) as caught:
        llm.chat(MESSAGES, sleeping(1), False, chat_template=TEMPLATE, timeout=SECONDS)
    assert len(caught.value.outputs) == 1


@pytest.mark.parametrize("value", [0, -1, float("nan"), "soon", True])
@pytest.mark.parametrize(
    "call",
    [
        lambda llm, value: llm.generate([1], GREEDY, timeout=value),
        lambda llm, value: llm.stream([1], GREEDY, timeout=value),
        lambda llm, value: llm.chat(MESSAGES, GREEDY, chat_template=TEMPLATE, timeout=value),
    ],
)
def test_other_timeouts_are_refused(llm: LLM, call: Callable[[LLM, Any], Any], value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout: got"):
        call(llm, value)


def test_a_full_queue_refuses_all_prompts_of_a_call(llm: LLM) -> None:
    streams = [llm.stream([i], ENDLESS) for i in range(4)]
    next(streams[0])
    num_requests = llm.metrics().num_running_requests + llm.metrics().num_waiting_requests
    with pytest.raises(QueueFullError) as caught:
        llm.generate([[1], [2]], GREEDY, use_tqdm=False)
    assert caught.value.limit == 3
    with pytest.raises(QueueFullError):
        llm.stream([[1], [2]], GREEDY)
    next(streams[0])
    metrics = llm.metrics()
    assert metrics.num_running_requests + metrics.num_waiting_requests == num_requests
    assert len(llm.generate([[1]], GREEDY, use_tqdm=False)) == 1
    streams[1].close()  # makes room at once
    assert len(llm.generate([[1], [2]], GREEDY, use_tqdm=False)) == 2
    for stream in streams:
        stream.close()


def test_what_never_fits_into_the_queue_is_invalid(llm: LLM) -> None:
    with pytest.raises(InvalidArgumentError, match=r"prompts: got 6 .* at most 5"):
        llm.generate([[i] for i in range(6)], GREEDY, use_tqdm=False)
    many = GREEDY.clone()
    many.temperature, many.n = 1.0, 6
    with pytest.raises(InvalidArgumentError, match=r"n: got 6 .* at most 5"):
        llm.generate([1], many, use_tqdm=False)
    assert len(llm.generate([[i] for i in range(5)], GREEDY, use_tqdm=False)) == 5


@pytest.mark.parametrize("value", [-1, 1.5, "many"])
def test_other_limits_of_the_queue_are_refused(tiny_dir: Path, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="max_waiting_requests"):
        LLM(tiny_dir, max_waiting_requests=value)


def beams(llm: LLM, prompts: list[list[int]], width: int, **options: Any) -> list[Any]:
    params = BeamSearchParams(beam_width=width, max_tokens=6, ignore_eos=True)
    return [output.sequences for output in llm.beam_search(prompts, params, **options)]


def test_a_beam_search_is_refused_before_it_begins(llm: LLM) -> None:
    prompts = [[1], [2], [3]]
    count = llm.metrics().num_finished_requests
    for width, given, field in ((6, prompts[:1], "beam_width"), (2, prompts, "prompts")):
        with pytest.raises(InvalidArgumentError, match="at most 5") as error:
            beams(llm, given, width)
        assert (error.value.field, error.value.value) == (field, "6 completions")
    with llm.stream([[1]], ENDLESS), pytest.raises(QueueFullError):
        beams(llm, prompts[:1], 5)
    llm.reset_prefix_cache()
    assert llm.metrics().num_finished_requests == count + 1  # the stream
    apart = beams(llm, prompts, 2, concurrency_limit=2)
    assert apart == [beams(llm, [prompt], 2)[0] for prompt in prompts]


def test_a_beam_search_waits_for_room_that_others_took_since_it_began(llm: LLM) -> None:
    expected = beams(llm, [[1]], 4)
    alone = [token_ids(o) for o in llm.generate([[2], [3]], ENDLESS, use_tqdm=False)]

    def take_room(**options: Any) -> tqdm[Any]:
        llm.enqueue([[2], [3]], ENDLESS)
        return tqdm(**options, disable=True)

    assert beams(llm, [[1]], 4, use_tqdm=take_room) == expected
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [token_ids(output) for output in outputs] == alone
