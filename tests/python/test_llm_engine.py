"""Requests step by step, priorities, salts and the columns of log-probabilities."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import forerun
from forerun import (
    LLM,
    BeamSearchParams,
    FlatLogprobs,
    InvalidArgumentError,
    LLMEngine,
    Logprob,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    TokensPrompt,
)

PROMPTS = ["the low the low", "a slow the low", "low low low"]


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, scheduling_policy="priority", block_size=16, num_threads=1)


def sampled(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.9, "seed": 3, "max_tokens": 12, **fields})


def run_engine(engine: LLMEngine) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


@pytest.mark.parametrize(
    "speculative_config", [None, {"method": "ngram", "num_speculative_tokens": 3}]
)
def test_the_engine_returns_the_outputs_of_generate_at_any_arrival_order(
    tiny_dir: Path, speculative_config: Any
) -> None:
    llm = LLM(tiny_dir, speculative_config=speculative_config, num_threads=1)
    params = sampled(n=2, logprobs=2, prompt_logprobs=1)
    expected = llm.generate(PROMPTS, params, use_tqdm=False)
    engine = llm.llm_engine
    assert engine.step() == []
    outputs: dict[str, list[RequestOutput]] = {}
    for index, prompt in enumerate(PROMPTS):
        assert engine.add_request(f"id {index}", prompt, params) == f"id {index}"
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert engine.get_num_unfinished_requests() <= len(PROMPTS)
    for request_id, more in run_engine(engine).items():
        outputs.setdefault(request_id, []).extend(more)
    for index, wanted in enumerate(expected):
        every = outputs[f"id {index}"]
        assert [output.finished for output in every] == [False] * (len(every) - 1) + [True]
        assert every[-1].outputs == wanted.outputs
        assert every[-1].prompt_logprobs == wanted.prompt_logprobs
        assert len(every) > 2
        for earlier, later in itertools.pairwise(every):
            for before, after in zip(earlier.outputs, later.outputs, strict=True):
                assert after.token_ids[: len(before.token_ids)] == before.token_ids
                assert after.text.startswith(before.text)
                assert after.logprobs is not None
                assert before.logprobs is not None
                assert after.logprobs[: len(before.logprobs)] == before.logprobs


def test_each_output_kind_returns_its_part(llm: LLM) -> None:
    engine = llm.llm_engine
    params = {
        kind: sampled(n=2, logprobs=1, prompt_logprobs=0, output_kind=kind)
        for kind in RequestOutputKind
    }
    for kind, param in params.items():
        engine.add_request(kind.name, PROMPTS[0], param)
    outputs = run_engine(engine)
    (final,) = outputs["FINAL_ONLY"]
    assert final.finished
    assert outputs["CUMULATIVE"][-1].outputs == final.outputs
    deltas = outputs["DELTA"]
    assert len(deltas) > 2
    assert [delta.finished for delta in deltas[:-1]] == [False] * (len(deltas) - 1)
    assert deltas[0].prompt_logprobs == final.prompt_logprobs
    assert all(delta.prompt_logprobs is None for delta in deltas[1:])
    for whole in final.outputs:
        parts = [part for delta in deltas for part in delta.outputs if part.index == whole.index]
        assert "".join(part.text for part in parts) == whole.text
        assert [token for part in parts for token in part.token_ids] == whole.token_ids
        assert [entries for part in parts for entries in part.logprobs or []] == whole.logprobs
        assert parts[-1].cumulative_logprob == whole.cumulative_logprob
        assert parts[-1].finish_reason == whole.finish_reason


def test_an_aborted_request_has_no_more_outputs(llm: LLM) -> None:
    engine = llm.llm_engine
    for name in ("a", "b", "c"):
        engine.add_request(name, PROMPTS[0], sampled(max_tokens=40))
    engine.step()
    engine.abort_request(["a", "unknown"])
    engine.abort_request("b")
    assert engine.get_num_unfinished_requests() == 1
    assert set(run_engine(engine)) == {"c"}
    assert llm.metrics().num_held_blocks == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"request_id": 3}, "request_id"),
        ({"params": None}, "params"),
        ({"prompt": {"prompt": 3}}, "prompt"),
        ({"lora_request": object()}, "lora_request"),
        ({"priority": "high"}, "priority"),
        ({"request_id": "taken"}, "request_id"),
    ],
)
def test_a_wrong_request_is_refused_and_the_others_go_on(
    llm: LLM, arguments: dict[str, Any], field: str
) -> None:
    engine = LLMEngine(llm)
    engine.add_request("taken", PROMPTS[0], sampled())
    given = {"request_id": "x", "prompt": "low", "params": sampled(), **arguments}
    with pytest.raises(InvalidArgumentError) as error:
        engine.add_request(**given)
    assert error.value.field == field
    assert set(run_engine(engine)) == {"taken"}


def finishing_order(llm: LLM, priorities: Any) -> list[str]:
    engine = LLMEngine(llm)
    for index, priority in enumerate(priorities):
        params = sampled(ignore_eos=True, max_tokens=5)
        engine.add_request(str(index), f"{PROMPTS[0]} {index}", params, priority=priority)
    return [
        output.request_id
        for _ in range(400)
        if engine.has_unfinished_requests()
        for output in engine.step()
        if output.finished
    ]


def test_lower_priorities_run_first(tiny_dir: Path) -> None:
    llm = LLM(tiny_dir, scheduling_policy="priority", max_num_seqs=1, num_threads=1)
    assert finishing_order(llm, [3, 0, 3, -7, 1]) == ["3", "1", "4", "0", "2"]
    assert finishing_order(llm, [0, 0, 0]) == ["0", "1", "2"]


def test_priorities_change_no_token(llm: LLM) -> None:
    plain = llm.generate(PROMPTS, sampled(), use_tqdm=False)
    ranked = llm.generate(PROMPTS, sampled(), priority=[2, 0, -1], use_tqdm=False)
    assert [output.outputs for output in plain] == [output.outputs for output in ranked]


@pytest.mark.parametrize("priority", [1, [0, -1], "high", [1.5, 0], [0], [0, 0, 0]])
def test_a_priority_that_cannot_hold_is_refused(tiny_dir: Path, priority: Any) -> None:
    llm = LLM(tiny_dir, num_threads=1)
    with pytest.raises(InvalidArgumentError, match="priority"):
        llm.generate(PROMPTS[:2], sampled(), priority=priority, use_tqdm=False)
    llm.generate(PROMPTS[:2], sampled(), priority=[0, 0], use_tqdm=False)


def test_only_equal_salts_share_cached_prefixes(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("the low the low the low the low the low the low the low")
    texts = set()

    def num_cached(salt: str | None) -> int:
        prompt = TokensPrompt(prompt_token_ids=ids, cache_salt=salt)
        output = llm.generate(prompt, sampled(), use_tqdm=False)[0]
        texts.add(output.outputs[0].text)
        return output.num_cached_tokens or 0

    assert llm.reset_prefix_cache()
    assert [num_cached(salt) for salt in (None, "a", "b")] == [0, 0, 0]
    assert all(num_cached(salt) > 0 for salt in (None, "a", "b"))
    assert llm.reset_prefix_cache()
    assert num_cached("a") == 0
    assert len(texts) == 1


@pytest.mark.parametrize("salt", ["", 3, "\ud83d"])
def test_a_salt_is_a_text(llm: LLM, salt: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cache_salt"):
        llm.generate({"prompt": "low", "cache_salt": salt}, sampled(), use_tqdm=False)


def test_token_ids_beside_a_text_are_run(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    prompt = {"prompt": "any text", "prompt_token_ids": ids, "multi_modal_data": None}
    (output,) = llm.generate([prompt], sampled(), use_tqdm=False)
    assert (output.prompt, output.prompt_token_ids) == ("any text", ids)
    assert output.outputs == llm.generate(PROMPTS[0], sampled(), use_tqdm=False)[0].outputs


def test_enqueued_requests_run_in_wait_for_completion(llm: LLM) -> None:
    messages: list[Any] = [{"role": "user", "content": "low"}]
    ids = llm.enqueue(PROMPTS, sampled()) + llm.enqueue_chat(messages, sampled(), use_tqdm=False)
    assert not llm.reset_prefix_cache()
    with pytest.raises(forerun.InvalidArgumentError, match="use_tqdm"):
        llm.wait_for_completion(use_tqdm=3)  # type: ignore[arg-type]
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == ids
    expected = llm.generate(PROMPTS, sampled(), use_tqdm=False)
    expected += llm.chat(messages, sampled(), use_tqdm=False)
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]
    assert llm.wait_for_completion() == []


def test_a_hook_that_waits_takes_no_requests_away(llm: LLM) -> None:
    refused = []

    def wait(_: list[int], logits: Any) -> None:
        with pytest.raises(forerun.EngineBusyError):
            llm.wait_for_completion(use_tqdm=False)
        refused.append(logits.shape)

    ids = llm.enqueue(PROMPTS, sampled())
    llm.generate(PROMPTS[0], sampled(logits_processors=[wait]), use_tqdm=False)
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert refused
    assert [output.request_id for output in outputs] == ids


def test_a_function_may_make_the_progress_bar(llm: LLM) -> None:
    from tqdm import tqdm

    bars = []

    def make(*args: Any, **kwargs: Any) -> Any:
        bars.append(tqdm(*args, **kwargs, disable=True))
        return bars[-1]

    llm.generate(PROMPTS, sampled(), use_tqdm=make)
    assert len(bars) == 1
    with pytest.raises(InvalidArgumentError, match="use_tqdm"):
        llm.generate(PROMPTS, sampled(), use_tqdm="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sleep", "wake_up", "collective_rpc", "apply_model"])
def test_unsupported_methods_give_the_reason(llm: LLM, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"LLM.{name}"):
        getattr(llm, name)("anything", x=1)


def test_the_configs_describe_the_loaded_model(llm: LLM, tiny_dir: Path) -> None:
    config = llm.llm_engine.model_config
    assert config is llm.model_config is llm.llm_engine.vllm_config.model_config
    assert config.model == config.tokenizer == str(tiny_dir)
    assert config.max_model_len == llm.limits.max_model_len
    assert config.dtype == llm.limits.dtype
    assert config.get_vocab_size() == config.hf_config.vocab_size == llm.limits.vocab_size
    assert llm.llm_engine.tokenizer is llm.get_tokenizer()
    cache = llm.llm_engine.vllm_config.cache_config
    assert cache.block_size == 16
    assert cache.num_gpu_blocks == llm.metrics().num_total_blocks
    assert llm.llm_engine.vllm_config.speculative_config is None


def test_the_configs_without_a_tokenizer_and_with_recommendations(tiny_dir: Path) -> None:
    llm = LLM(
        tiny_dir,
        skip_tokenizer_init=True,
        max_model_len=32,
        override_generation_config={"top_k": 7},
        speculative_config={"method": "ngram", "num_speculative_tokens": 2},
    )
    engine = llm.llm_engine
    assert engine.tokenizer is engine.model_config.tokenizer is None
    assert engine.model_config.max_model_len == 32
    assert engine.model_config.get_diff_sampling_param()["top_k"] == 7
    assert engine.vllm_config.speculative_config is llm.speculative_config


def test_small_facts(llm: LLM) -> None:
    assert llm.get_world_size() == 1
    assert forerun.__version__
    with pytest.raises(AttributeError):
        forerun.nothing  # noqa: B018


def test_logprobs_read_as_a_list_of_dicts(llm: LLM) -> None:
    params = sampled(logprobs=2, prompt_logprobs=-1)
    output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]
    for flat in (output.outputs[0].logprobs, output.prompt_logprobs):
        assert isinstance(flat, FlatLogprobs)
        plain = list(flat)
        assert flat == plain
        assert plain == flat
        assert flat != plain[1:]
        assert (flat[-1], flat[1:4], flat[::-1]) == (plain[-1], plain[1:4], plain[::-1])
        assert flat[2:][1:] == plain[3:]
        assert flat[5:5] == []
        assert (flat + plain, [None] + flat) == (plain + plain, [None, *plain])  # noqa: RUF005
        assert repr(flat) == repr(plain)
        with pytest.raises(IndexError):
            flat[len(plain)]
        for position, entries in enumerate(plain):
            columns = slice(flat.start_indices[position], flat.end_indices[position])
            values = zip(flat.logprobs[columns], flat.ranks[columns], strict=True)
            texts = flat.decoded_tokens[columns]
            built = [Logprob(*pair, text) for pair, text in zip(values, texts, strict=True)]
            assert dict(zip(flat.token_ids[columns], built, strict=True)) == (entries or {})
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    vocabulary = output.prompt_logprobs[1]
    assert len(vocabulary) == llm.limits.vocab_size
    assert math.isclose(
        sum(math.exp(entry.logprob) for entry in vocabulary.values()), 1.0, rel_tol=1e-6
    )


def test_an_entry_of_a_long_prompt_takes_few_bytes(llm: LLM) -> None:
    import tracemalloc

    ids = [(7 * i) % 200 for i in range(60)]
    params = sampled(max_tokens=1, prompt_logprobs=-1, detokenize=False)
    llm.generate(ids, params, use_tqdm=False)
    tracemalloc.start()
    output = llm.generate(ids, params, use_tqdm=False)[0]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert output.prompt_logprobs is not None
    arrays = sum(rows.nbytes for rows in output.prompt_logprobs._chunks)
    num_entries = 59 * (llm.limits.vocab_size + 1)
    assert arrays == 12 * num_entries
    assert held < 4 * num_entries  # all else; a dict of Logprobs takes hundreds for each
    assert sys.getsizeof(output.prompt_logprobs) < 1000


@pytest.mark.parametrize(
    "speculative_config", [None, {"method": "ngram", "num_speculative_tokens": 3}]
)
def test_logprobs_of_given_tokens_are_those_of_the_whole_vocabulary(
    tiny_dir: Path, speculative_config: Any
) -> None:
    llm = LLM(tiny_dir, speculative_config=speculative_config, num_threads=1)
    ids = [5, 200, 5, 0]
    whole = llm.generate(PROMPTS[0], sampled(logprobs=-1), use_tqdm=False)[0].outputs[0]
    for fields in ({}, {"logprobs": 1}, {"temperature": 0.9, "n": 2}):
        params = sampled(logprob_token_ids=ids, **fields)
        some = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
        assert some.token_ids == whole.token_ids
        assert some.logprobs is not None
        assert whole.logprobs is not None
        for token, entries, every in zip(
            some.token_ids, some.logprobs, whole.logprobs, strict=True
        ):
            assert list(entries) == list(dict.fromkeys([token, *ids]))
            assert entries == {token: every[token] for token in entries}
        assert some.cumulative_logprob == whole.cumulative_logprob


def test_a_token_beyond_the_vocabulary_has_no_logprob(llm: LLM) -> None:
    with pytest.raises(InvalidArgumentError, match="logprob_token_ids"):
        llm.generate("low", sampled(logprob_token_ids=[1, 100000]), use_tqdm=False)


def exhaustive(llm: LLM, ids: list[int], allowed: list[int], length: int) -> dict[Any, float]:
    """The log-probability of every text of some tokens."""
    scores: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(length):
        grown = {}
        for tokens, score in scores.items():
            params = SamplingParams(max_tokens=1, temperature=0, logprobs=-1)
            output = llm.generate([*ids, *tokens], params, use_tqdm=False)[0].outputs[0]
            assert output.logprobs is not None
            for token in allowed:
                grown[(*tokens, token)] = score + output.logprobs[0][token].logprob
        scores = grown
    return scores


def test_a_wide_beam_search_finds_the_most_probable_texts(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    allowed = [ord("a") + 3, ord("b") + 3, ord("c") + 3]
    scores = exhaustive(llm, ids, allowed, 3)
    best = sorted(scores, key=lambda tokens: scores[tokens], reverse=True)
    params = BeamSearchParams(
        beam_width=9, max_tokens=3, allowed_token_ids=allowed, ignore_eos=True
    )
    (output,) = llm.beam_search([{"prompt_token_ids": ids}], params)
    assert [tuple(beam.tokens[len(ids) :]) for beam in output.sequences] == best[:9]
    for beam in output.sequences:
        assert math.isclose(beam.cum_logprob, scores[tuple(beam.tokens[len(ids) :])])
        assert beam.text == llm.get_tokenizer().decode(beam.tokens, skip_special_tokens=True)
        assert (beam.finish_reason, len(beam.logprobs)) == ("length", 3)


def test_one_beam_is_greedy_and_prompts_are_searched_apart(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=1, max_tokens=6, ignore_eos=True)
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    expected = llm.generate(PROMPTS, greedy, use_tqdm=False)
    for limit in (None, 1, 2):
        outputs = llm.beam_search(PROMPTS, params, concurrency_limit=limit)
        for output, wanted in zip(outputs, expected, strict=True):
            (beam,) = output.sequences
            assert beam.tokens == wanted.prompt_token_ids + wanted.outputs[0].token_ids


def test_beams_follow_a_grammar(llm: LLM) -> None:
    structure = {"choice": ["low", "slow", "the low"]}
    params = BeamSearchParams(beam_width=3, max_tokens=9, structured_outputs=structure)
    (output,) = llm.beam_search(PROMPTS[:1], params)
    texts = {(beam.text or "").removeprefix(PROMPTS[0]) for beam in output.sequences}
    assert texts == {"low", "slow", "the low"}
    assert {beam.finish_reason for beam in output.sequences} == {"stop"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"beam_width": 0}, "beam_width"),
        ({"max_tokens": None}, "max_tokens"),
        ({"length_penalty": "x"}, "length_penalty"),
        ({"beams": 3}, "beams"),
    ],
)
def test_wrong_beam_search_params_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 3, **fields})
    assert error.value.field == field
