"""What each sampling option does to the output, through the public interface."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forerun import LLM, Logprob, RequestOutput, SamplingParams

PROMPT = "the low the low the"


@pytest.fixture(scope="module")
def shared(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, speculative_config={"method": "suffix"}, check_invariants=True)


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    yield shared
    shared.reset_caches()
    assert shared.metrics().num_held_blocks == 0


def run(llm: LLM, prompt: Any = PROMPT, **fields: Any) -> RequestOutput:
    fields = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, **fields}
    return llm.generate(prompt, SamplingParams(**fields), use_tqdm=False)[0]


def tokens(llm: LLM, **fields: Any) -> list[int]:
    return run(llm, **fields).outputs[0].token_ids


def test_allowed_tokens_and_biases_decide_what_appears(llm: LLM) -> None:
    assert set(tokens(llm, allowed_token_ids=[5, 9], temperature=2.0, seed=1)) == {5, 9}
    assert set(tokens(llm, logit_bias={7: 100.0})) == {7}
    free = tokens(llm)
    assert free[0] not in tokens(llm, logit_bias=dict.fromkeys(set(free), -100.0))


def test_penalties_drive_out_repetition(llm: LLM) -> None:
    def num_distinct(**fields: Any) -> int:
        return len(set(tokens(llm, logit_bias={7: 3.0, 8: 2.9}, **fields)))

    plain = num_distinct()
    assert num_distinct(presence_penalty=2.0) > plain
    assert num_distinct(frequency_penalty=2.0) > plain
    assert num_distinct(repetition_penalty=3.0) > plain


def test_a_bad_word_never_appears_with_or_without_a_space(llm: LLM) -> None:
    fields: dict[str, Any] = {"allowed_token_ids": list(range(60, 100)), "max_tokens": 40}
    text = run(llm, **fields).outputs[0].text
    word = next(letter for letter in text if letter.isascii() and letter.isalnum())
    assert word not in run(llm, bad_words=[word], **fields).outputs[0].text


def test_bad_words_are_encoded_with_and_without_a_space(llm: LLM, smollm_dir: Path) -> None:
    from forerun.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(smollm_dir)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    assert tokenizer.encode_bad_words([" cat", "cat"]) == [encode("cat"), encode(" cat")] * 2
    assert tokenizer.encode_bad_words(["cat", "cat"]) == [encode("cat"), encode(" cat")]


def test_logprobs_have_the_sampled_token_the_best_ones_and_their_ranks(llm: LLM) -> None:
    output = run(llm, temperature=1.5, seed=3, logprobs=3).outputs[0]
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids)
    total = 0.0
    for token, entries in zip(output.token_ids, output.logprobs, strict=True):
        assert 3 <= len(entries) <= 4
        assert next(iter(entries)) == token
        total += entries[token].logprob
        by_rank = sorted(entries.values(), key=lambda entry: entry.rank or 0)
        assert [entry.rank for entry in by_rank[:3]] == [1, 2, 3]
        assert [e.logprob for e in by_rank] == sorted((e.logprob for e in by_rank), reverse=True)
        assert isinstance(entries[token].decoded_token, str)
    assert output.cumulative_logprob == total
    plain = run(llm).outputs[0]
    assert (plain.logprobs, plain.cumulative_logprob) == (None, None)


def test_the_whole_vocabulary_sums_to_one_and_zero_asks_for_the_token_alone(llm: LLM) -> None:
    every = run(llm, logprobs=-1, max_tokens=2, logit_bias={3: 50.0}).outputs[0].logprobs
    assert every is not None
    for entries in every:
        assert len(entries) == llm.limits.vocab_size
        assert math.isclose(sum(math.exp(e.logprob) for e in entries.values()), 1.0, rel_tol=1e-5)
        assert entries[3].logprob < -0.5, "the bias is no part of the model's opinion"
    single = run(llm, logprobs=0, max_tokens=2).outputs[0].logprobs
    assert single is not None
    assert [len(entries) for entries in single] == [1, 1]


def test_a_prompt_is_scored_as_if_it_had_been_sampled(llm: LLM) -> None:
    """Teacher forcing: the log-probabilities of a text are the same as prompt and as output."""
    written = run(llm, logprobs=2)
    text = written.prompt_token_ids + written.outputs[0].token_ids
    scored = run(llm, text, prompt_logprobs=2, max_tokens=1)
    assert scored.prompt_logprobs is not None
    assert len(scored.prompt_logprobs) == len(text)
    assert scored.prompt_logprobs[0] is None
    assert scored.prompt_logprobs[len(written.prompt_token_ids) :] == written.outputs[0].logprobs
    assert run(llm, text, max_tokens=1).num_cached_tokens > 0, "others still read the cache"
    again = run(llm, text, prompt_logprobs=2, max_tokens=1)
    assert again.num_cached_tokens == 0
    assert again.prompt_logprobs == scored.prompt_logprobs
    assert run(llm).prompt_logprobs is None


def test_a_prompt_of_one_token_has_nothing_to_score(llm: LLM) -> None:
    assert run(llm, [4], prompt_logprobs=1, max_tokens=1).prompt_logprobs == [None]


def test_n_completions_are_those_of_n_seeds_in_order(llm: LLM) -> None:
    fields: dict[str, Any] = {"temperature": 1.0, "max_tokens": 30, "ignore_eos": False}
    output = run(llm, seed=2**64 - 1, n=4, logprobs=1, prompt_logprobs=1, **fields)
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
    for index, completion in enumerate(output.outputs):
        [alone] = run(llm, seed=(2**64 - 1 + index) % 2**64, logprobs=1, **fields).outputs
        assert completion.token_ids == alone.token_ids
        assert completion.finish_reason == alone.finish_reason
        assert completion.logprobs == alone.logprobs
        assert completion.text == alone.text
    assert len({tuple(completion.token_ids) for completion in output.outputs}) > 1
    assert output.prompt_logprobs == run(llm, prompt_logprobs=1).prompt_logprobs
    assert output.metrics is not None
    assert output.metrics.num_generated_tokens == sum(len(o.token_ids) for o in output.outputs)


def test_n_completions_compute_their_prompt_once(llm: LLM) -> None:
    llm.reset_caches()
    before = llm.metrics().num_prompt_tokens
    prompt = [3, 5, 7, 9] * 20
    run(llm, prompt, temperature=1.0, n=5, max_tokens=3)
    assert llm.metrics().num_prompt_tokens - before < len(prompt) + 5 * 16


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_of_several_prompts_and_completions_adds_up(llm: LLM, n: int) -> None:
    params = SamplingParams(temperature=1.0, seed=5, n=n, max_tokens=20, logprobs=1)
    prompts = ["hello", PROMPT, "hello"]
    expected = llm.generate(prompts, params, use_tqdm=False)
    texts: dict[tuple[int, int], str] = {}
    ids: dict[tuple[int, int], list[int]] = {}
    logprobs: dict[tuple[int, int], list[dict[int, Logprob]]] = {}
    reasons: dict[tuple[int, int], str] = {}
    outputs: dict[int, RequestOutput] = {}
    for delta in llm.stream(prompts, params):
        key = (delta.index, delta.completion_index)
        assert key not in reasons
        assert delta.index not in outputs
        texts[key] = texts.get(key, "") + delta.text
        ids[key] = ids.get(key, []) + delta.token_ids
        assert delta.logprobs is not None
        logprobs[key] = logprobs.get(key, []) + delta.logprobs
        if delta.finish_reason is not None:
            reasons[key] = delta.finish_reason
        if delta.output is not None:
            outputs[delta.index] = delta.output
    for index, request in enumerate(expected):
        assert outputs[index].outputs == request.outputs
        for completion in request.outputs:
            key = (index, completion.index)
            assert texts[key] == completion.text
            assert ids[key] == completion.token_ids
            assert logprobs[key] == completion.logprobs
            assert reasons[key] == completion.finish_reason


def test_closing_a_stream_ends_all_completions(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, n=3, max_tokens=200, ignore_eos=True)
    with llm.stream(PROMPT, params) as stream:
        next(stream)


def test_special_tokens_are_text_when_asked_for(llm: LLM) -> None:
    [special, *_] = llm.get_tokenizer().special_token_ids
    name = llm.get_tokenizer().token_bytes.whole[special].decode()
    fields: dict[str, Any] = {"allowed_token_ids": [special], "max_tokens": 3}
    assert run(llm, **fields).outputs[0].text == ""
    kept = run(llm, skip_special_tokens=False, logprobs=0, **fields).outputs[0]
    assert kept.text == name * 3
    assert kept.logprobs is not None
    assert kept.logprobs[0][special].decoded_token == name
    stopped = run(llm, skip_special_tokens=False, stop=name * 2, **fields).outputs[0]
    assert (stopped.text, len(stopped.token_ids)) == ("", 2)
    pieces = llm.stream(PROMPT, SamplingParams(skip_special_tokens=False, **fields))
    assert "".join(delta.text for delta in pieces) == name * 3


def test_without_detokenizing_there_are_ids_and_no_text(llm: LLM) -> None:
    output = run(llm, detokenize=False, logprobs=1).outputs[0]
    assert output.text == ""
    assert output.token_ids == tokens(llm)
    assert output.logprobs is not None
    assert {entry.decoded_token for entries in output.logprobs for entry in entries.values()} == {
        None
    }


def test_a_request_that_may_sample_nothing_fails_alone(llm: LLM) -> None:
    word = llm.get_tokenizer().decode([40])
    good, bad = llm.generate(
        [PROMPT, PROMPT],
        [
            SamplingParams(temperature=0, max_tokens=5, ignore_eos=True),
            SamplingParams(temperature=0, allowed_token_ids=[40], bad_words=[word]),
        ],
        use_tqdm=False,
    )
    assert good.outputs[0].finish_reason == "length"
    assert bad.outputs[0].finish_reason == "error"
    assert bad.error is not None
    assert "no token can be sampled" in bad.error
