"""A caller's own functions of logits: what they see, what they may do, and how they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forerun import LLM, InvalidArgumentError, SamplingParams

PROMPT = "hello hello hello"
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 1},
    "suffix": {"method": "suffix", "adaptive": False},
}


@pytest.fixture(scope="module")
def llms(tiny_dir: Path) -> dict[str, LLM]:
    return {name: LLM(tiny_dir, speculative_config=config) for name, config in METHODS.items()}


def run(llm: LLM, processors: list[Any], **fields: Any) -> Any:
    given = {"temperature": 0, "max_tokens": 20, "ignore_eos": True, **fields}
    params = SamplingParams(logits_processors=processors, **given)
    return llm.generate(PROMPT, params, use_tqdm=False)[0]


def count_upwards(token_ids: list[int], logits: Any) -> None:
    logits[:] = -np.inf
    logits[5 + len(token_ids) % 3] = 1.0


def repel_the_last(token_ids: list[int], logits: Any) -> Any:
    changed = logits.astype(np.float64)
    if token_ids:
        changed[token_ids[-1]] -= 3.0
        changed[sum(token_ids) % len(changed)] += 2.0
    return changed


@pytest.mark.parametrize("method", METHODS)
def test_functions_change_logits_in_place_or_return_others(
    method: str, llms: dict[str, LLM]
) -> None:
    llm = llms[method]
    assert run(llm, [count_upwards]).outputs[0].token_ids == [5 + i % 3 for i in range(20)]

    def shift(token_ids: list[int], logits: Any) -> list[float]:
        return [float(x) for x in np.roll(logits, 1)]

    assert run(llm, [count_upwards, shift]).outputs[0].token_ids[:3] == [6, 7, 8]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.9, "seed": 3, "top_k": 20, "n": 2}])
def test_speculation_does_not_change_their_arguments_or_effect(
    fields: dict[str, Any], llms: dict[str, LLM]
) -> None:
    seen: dict[str, list[Any]] = {}

    def outcome(method: str) -> Any:
        calls = seen.setdefault(method, [])

        def record(token_ids: list[int], logits: Any) -> None:
            calls.append((tuple(token_ids), logits.tobytes()))

        given = {"logprobs": 1, "max_tokens": 40, **fields}
        output = run(llms[method], [record, repel_the_last], presence_penalty=0.5, **given)
        return [(done.token_ids, done.logprobs, done.finish_reason) for done in output.outputs]

    expected = outcome("none")
    for method in ("ngram", "suffix"):
        assert outcome(method) == expected
        assert sorted(seen[method]) == sorted(seen["none"])


def test_they_run_after_biases_and_before_penalties(llms: dict[str, LLM]) -> None:
    seen = []

    def look(token_ids: list[int], logits: Any) -> None:
        seen.append(logits.copy())
        logits[:] = 0.0
        logits[7] = 2.0
        logits[8] = 1.0

    fields = {"allowed_token_ids": [7, 8, 9], "logit_bias": {9: 50.0}, "presence_penalty": 1.5}
    output = run(llms["none"], [look], max_tokens=3, **fields)
    assert np.isneginf(seen[0][:7]).all()
    assert seen[0].argmax() == 9
    assert output.outputs[0].token_ids == [7, 8, 7], "penalised after the function"


def fail_at_four(token_ids: list[int], logits: Any) -> None:
    if len(token_ids) == 4:
        raise ValueError("four is too many")


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_fails_its_request_alone(method: str, llms: dict[str, LLM]) -> None:
    plain = SamplingParams(temperature=0, max_tokens=12)
    failing = SamplingParams(temperature=0, max_tokens=12, logits_processors=[fail_at_four])
    [alone] = llms["none"].generate(PROMPT, plain, use_tqdm=False)
    failed, beside = llms[method].generate([PROMPT] * 2, [failing, plain], use_tqdm=False)
    assert failed.error == "the logits hook failed: ValueError: four is too many"
    assert failed.outputs[0].finish_reason == "error"
    assert failed.outputs[0].token_ids == alone.outputs[0].token_ids[:4]
    assert beside.outputs[0] == alone.outputs[0]


WRONG: list[tuple[Any, str]] = [
    (lambda ids, logits: logits[:-1], "came back where"),
    (lambda ids, logits: "nonsense", "ValueError"),
    (lambda ids, logits: logits * np.nan, "is nan"),
    (lambda ids, logits: logits * 0 - np.inf, "no token can be sampled"),
    (lambda ids: None, "TypeError"),
]


@pytest.mark.parametrize(("processor", "message"), WRONG)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mistakes_of_functions_are_reported(
    processor: Any, message: str, llms: dict[str, LLM]
) -> None:
    output = run(llms["suffix"], [processor])
    assert message in (output.error or "")
    assert output.outputs[0].token_ids == []


def test_an_interrupt_is_the_callers(llms: dict[str, LLM]) -> None:
    def interrupt(token_ids: list[int], logits: Any) -> None:
        if len(token_ids) == 3:
            raise KeyboardInterrupt

    for llm in llms.values():
        with pytest.raises(KeyboardInterrupt):
            run(llm, [interrupt])
        assert run(llm, []).error is None, "the engine goes on"


def test_values_that_are_not_lists_of_functions_are_refused() -> None:
    for wrong in (count_upwards, "count", [3], [count_upwards, None]):
        with pytest.raises(InvalidArgumentError, match="logits_processors"):
            SamplingParams(logits_processors=wrong)  # type: ignore[arg-type]
