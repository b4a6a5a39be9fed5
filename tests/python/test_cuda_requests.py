"""What requests may ask for, on the emulated GPU: drafts change nothing of it there either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_lossless as lossless
import test_structured_outputs as structured
from emulated_gpu import EmulatedGpu
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_models import SPECULATIVE, load
from test_families import NUM_TOKENS, random_tokens
from tiny_checkpoints import VARIATIONS, Variation, write_checkpoint

from forerun import LLM, RequestOutput, SamplingParams

REPEATED = "one two three one two three one two"


def check_lossless(max_examples: int) -> tuple[int, int, int]:
    """Returns how many draft tokens were accepted, requests preempted and tokens found."""
    counts = [0, 0, 0]

    @settings(max_examples=max_examples, derandomize=True, **lossless.QUIET)
    @given(st.sampled_from(lossless.MODELS), lossless.engine_settings(), lossless.REQUESTS)
    def check(model: Any, options: Any, requests: Any) -> None:
        metrics = lossless.check(model, options, requests, "cuda")
        counts[0] += metrics.spec_decode.num_accepted_tokens
        counts[1] += metrics.num_preemptions
        counts[2] += metrics.num_prefilled_from_cache

    check()
    return counts[0], counts[1], counts[2]


def test_output_is_that_of_plain_decoding_there(gpu: EmulatedGpu) -> None:
    check_lossless(2)


@pytest.mark.long
def test_output_is_that_of_plain_decoding_there_at_length(gpu: EmulatedGpu) -> None:
    assert min(check_lossless(200)) > 10


def with_every_drafter(model: Path, **options: Any) -> list[LLM]:
    """Plain decoding, and ways of drafting."""
    configs = [{**config, "adaptive": False} for config in SPECULATIVE]
    return [load(model, speculative_config=config, **options) for config in [None, *configs]]


def test_structured_texts_are_valid_and_the_same_with_drafts(
    gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"]}
    structures: list[dict[str, Any]] = [
        {"regex": r"(ab|c){2,4}x*"},
        {"choice": ["abc", "ab", "null"]},
        {"grammar": 'start: "a" start "b" | "c"'},
        {"json": {**schema, "additionalProperties": False}, "disable_any_whitespace": True},
    ]
    params = [
        SamplingParams(
            temperature=index % 2 * 0.8,
            n=1 + index % 2,
            seed=index,
            max_tokens=24,
            logprobs=2,
            structured_outputs=fields,
        )
        for index, fields in enumerate(structures)
    ]
    prompts = ["abc abc abc"] * len(params)
    plain, *drafting = with_every_drafter(tiny_dir)
    expected = structured.results(plain, prompts, params)
    owners = [
        fields for fields, each in zip(structures, params, strict=True) for _ in range(each.n)
    ]
    for fields, (_, reason, _, text) in zip(owners, expected, strict=True):
        structured.check(fields, text, reason)
    for llm in drafting:
        assert structured.results(llm, prompts, params) == expected
        assert llm.metrics().spec_decode.num_accepted_tokens > 3


def everything(output: RequestOutput) -> Any:
    return output.prompt_logprobs, [
        (each.token_ids, each.finish_reason, each.logprobs, each.cumulative_logprob)
        for each in output.outputs
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logprobs_and_samples_are_those_of_plain_decoding(
    dtype: str, gpu: EmulatedGpu, tiny_dir: Path
) -> None:
    """With `n`, from cached prefixes and after preemptions."""
    fields: dict[str, Any] = {"temperature": 0.8, "max_tokens": 8, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0, max_tokens=16, logprobs=3, prompt_logprobs=2),
        SamplingParams(**fields, seed=2, logprobs=0, n=2),
        SamplingParams(**fields, seed=3, repetition_penalty=1.2, logit_bias={65: 2.0}),
    ]
    prompts = [REPEATED, REPEATED, "x y " + REPEATED]
    options = {"dtype": dtype, "max_model_len": 64}

    def generate(llm: LLM) -> list[Any]:
        return [everything(each) for each in llm.generate(prompts, params, use_tqdm=False)]

    expected = generate(load(tiny_dir, **options))
    room = 8 << 20
    blocks = load(tiny_dir, **options, kv_cache_memory_bytes=room).metrics().num_total_blocks
    options["speculative_config"] = {**SPECULATIVE[1], "adaptive": False}
    roomy = load(tiny_dir, **options)
    narrow = load(tiny_dir, **options, kv_cache_memory_bytes=room // blocks * 5)
    for llm in (roomy, narrow):
        for _ in range(2):  # the second time from what the index and the cache keep
            assert generate(llm) == expected
        assert llm.metrics().spec_decode.num_accepted_tokens > 3
    assert roomy.metrics().num_prefilled_from_cache > 0
    assert narrow.metrics().num_preemptions > 0


def check_family(variation: Variation, dtype: str, directory: Path) -> None:
    write_checkpoint(variation, directory)
    prompt = {"prompt_token_ids": random_tokens(NUM_TOKENS).tolist()}
    scored = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, prompt_logprobs=0)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    options: dict[str, Any] = {"dtype": dtype, "max_model_len": 128, "skip_tokenizer_init": True}
    values = []
    for device in ("cpu", "cuda"):
        llm = load(directory, device=device, **options)
        [output] = llm.generate([prompt], scored, use_tqdm=False)
        assert output.prompt_logprobs is not None
        values.append([next(iter(e.values())).logprob for e in output.prompt_logprobs if e])
    tolerance = {"float32": 1e-4, "bfloat16": 0.2}[dtype] * np.std(values[0])
    np.testing.assert_allclose(values[1], values[0], rtol=0, atol=tolerance)
    expected = output.outputs[0].token_ids
    [again] = load(
        directory, speculative_config={**SPECULATIVE[1], "adaptive": False}, **options
    ).generate([prompt], params, use_tqdm=False)
    assert again.outputs[0].token_ids == expected


# Of each family what its attention has of its own.
SOME = ("llama_yarn", "qwen3_windows", "gemma2", "gemma3")


@pytest.mark.parametrize("name", SOME)
def test_a_family_computes_there_what_the_cpu_does(
    name: str, gpu: EmulatedGpu, tmp_path: Path
) -> None:
    check_family(next(each for each in VARIATIONS if each.name == name), "bfloat16", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda variation: variation.name)
def test_every_family_computes_there_what_the_cpu_does(
    variation: Variation, dtype: str, gpu: EmulatedGpu, tmp_path: Path
) -> None:
    check_family(variation, dtype, tmp_path)
