"""Exceptions of signal handlers and of neighbours' hooks: no update is lost, no call hangs."""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alarms import Alarm, interrupt

from forerun import LLM, CompletionDelta, EngineBusyError, SamplingParams, StructuredOutputsParams
from forerun.engine.requests import Request

NUM_TOKENS = 60
PROMPTS = [f"{index} low low " for index in range(24)]


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(
        tiny_dir,
        max_num_seqs=8,
        check_invariants=True,
        speculative_config={"method": "ngram", "num_speculative_tokens": 3},
    )


@pytest.fixture(autouse=True)
def idle(llm: LLM) -> Iterator[None]:
    """Nothing is left in the engine after a test."""
    yield
    gc.collect()
    llm.reset_caches()
    assert llm.metrics().num_running_requests == llm.metrics().num_waiting_requests == 0


def slow_processor(token_ids: list[int], logits: Any) -> None:
    logits += sum(0 for _ in range(50))  # a signal is handled in Python code only


def parameters(kind: str, num_tokens: int = NUM_TOKENS) -> SamplingParams:
    options: dict[str, Any] = {
        "plain": {},
        "logprobs": {"logprobs": 2, "prompt_logprobs": 1, "n": 2, "temperature": 0.5, "seed": 7},
        "grammar": {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{500}")},
        "processor": {"logits_processors": [slow_processor]},
    }[kind]
    return SamplingParams(
        **{"temperature": 0, "max_tokens": num_tokens, "ignore_eos": True} | options
    )


def check_rounds(llm: LLM, kind: str, num_rounds: int) -> None:
    """A stream beside calls of generate that are interrupted, as in the undisturbed run."""
    params = parameters(kind)
    expected = llm.generate("the low", params, use_tqdm=False)[0]
    rng = random.Random(num_rounds)
    num_interrupted = 0
    for _ in range(num_rounds):
        stream = llm.stream("the low", params)
        deltas = [next(stream) for _ in range(rng.randrange(3))]
        num_interrupted += interrupt(
            lambda: llm.generate(PROMPTS, params, use_tqdm=False), rng.uniform(0.001, 0.012)
        )
        deltas += stream
        compare(deltas, expected)
    assert num_interrupted > num_rounds // 2


def compare(deltas: list[CompletionDelta], expected: Any) -> None:
    output = deltas[-1].output
    assert output is not None
    assert output.outputs == expected.outputs
    assert output.prompt_logprobs == expected.prompt_logprobs
    assert output.error is None
    for index, completion in enumerate(expected.outputs):
        own = [delta for delta in deltas if delta.completion_index == index]
        assert [token for delta in own for token in delta.token_ids] == completion.token_ids
        assert "".join(delta.text for delta in own) == completion.text


@pytest.mark.parametrize("kind", ["plain", "logprobs", "grammar", "processor"])
def test_a_stream_beside_interrupted_calls_loses_nothing(llm: LLM, kind: str) -> None:
    check_rounds(llm, kind, num_rounds=12)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["plain", "logprobs", "grammar", "processor"])
def test_a_stream_beside_many_interrupted_calls_loses_nothing(llm: LLM, kind: str) -> None:
    check_rounds(llm, kind, num_rounds=1000)


@pytest.mark.parametrize("kind", ["plain", "grammar"])
def test_reading_a_stream_continues_after_an_interrupt(llm: LLM, kind: str) -> None:
    params = parameters(kind)
    expected = llm.generate("the low", params, use_tqdm=False)[0]
    rng = random.Random(3)
    num_interrupted = 0
    for _ in range(20):
        stream = llm.stream("the low", params)
        deltas: list[CompletionDelta] = []

        def read() -> None:
            delta = None
            try:
                for delta in stream:  # noqa: B023
                    deltas.append(delta)  # noqa: B023
            except Alarm:
                # Handed over, and not yet kept.
                if delta is not None and delta not in deltas[-1:]:  # noqa: B023
                    deltas.append(delta)  # noqa: B023
                raise

        while interrupt(read, rng.uniform(0.001, 0.004)):
            num_interrupted += 1
        compare(deltas, expected)
    assert num_interrupted > 0


def test_an_interrupt_in_a_neighbours_hook_leaves_a_stream_open(llm: LLM) -> None:
    calls = iter([None, KeyboardInterrupt, None, SystemExit])

    def interrupting(token_ids: list[int], logits: Any) -> None:
        error = next(calls, None)
        if error is not None:
            raise error

    params = parameters("grammar")
    expected = llm.generate("the low", params, use_tqdm=False)[0]
    stream = llm.stream("the low", params)
    others = SamplingParams(
        temperature=0, max_tokens=9, ignore_eos=True, logits_processors=[interrupting]
    )
    neighbour = llm.stream("low", others)
    deltas: list[CompletionDelta] = []
    errors = []
    while not deltas or not deltas[-1].finished:
        try:
            deltas.append(next(stream))
        except (KeyboardInterrupt, SystemExit) as error:
            errors.append(type(error))
    compare(deltas, expected)
    assert errors == [KeyboardInterrupt, SystemExit]
    assert sum(len(delta.token_ids) for delta in neighbour) == 9


def test_an_interrupted_submission_leaves_nothing(llm: LLM) -> None:
    expected = llm.generate("the low", parameters("plain"), use_tqdm=False)[0]
    rng = random.Random(5)
    for _ in range(10):
        many = [f"{rng.random()}" for _ in range(200)]
        interrupt(lambda: llm.stream(many, parameters("plain")), rng.uniform(0.0005, 0.01))  # noqa: B023
        assert (
            llm.generate("the low", parameters("plain"), use_tqdm=False)[0].outputs
            == expected.outputs
        )


def test_a_signal_handler_that_calls_the_model_is_refused(llm: LLM) -> None:
    errors = []

    def handler(*_: object) -> None:
        try:
            llm.generate("low", parameters("plain", 1), use_tqdm=False)
        except EngineBusyError as error:
            errors.append(error)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        outputs = llm.generate(PROMPTS, parameters("processor"), use_tqdm=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert errors
    assert all(output.error is None for output in outputs)


@pytest.mark.parametrize("num_tokens", [2, 3, 5, NUM_TOKENS])  # some end where they are collected
def test_streams_collected_in_the_middle_of_a_step_are_cancelled_after_it(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    expected = [
        output.outputs for output in llm.generate(PROMPTS, parameters("plain"), use_tqdm=False)
    ]
    take = Request.take

    def collecting(self: Request, *args: Any) -> None:
        gc.collect(1)
        take(self, *args)

    for _ in range(2):
        for prompt in PROMPTS[:6]:
            cycle: list[Any] = [llm.stream(prompt, parameters("plain", num_tokens))]
            next(cycle[0])
            cycle.append(cycle)
            del cycle
        with monkeypatch.context() as patch:
            patch.setattr(Request, "take", collecting)
            outputs = llm.generate(PROMPTS[:3], parameters("plain"), use_tqdm=False)
        assert [output.outputs for output in outputs] == expected[:3]
