"""Thousands of unlike requests per format of weights: the same ids with speculation as without."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from corpus import TEXTS
from test_integer_formats import FORMATS, directory_of

from forerun import LLM, SamplingParams

NUM_REQUESTS = 3000
NUM_AT_ONCE = 500  # of one call
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "adaptive": False},
    {"method": "suffix", "adaptive": False},
)

Requests = list[tuple[list[int], SamplingParams]]


def requests(draw: random.Random, prompts: list[list[int]], longest: int) -> Requests:
    """Prompts that repeat themselves, greedy and sampled, with penalties and without."""
    made = []
    for number in range(NUM_REQUESTS):
        prompt = list(draw.choice(prompts))
        start = draw.randrange(len(prompt))
        prompt = prompt[start : start + draw.randint(1, longest)]
        prompt = prompt * draw.choice((1, 1, 2, 3))
        options: dict[str, Any] = {"max_tokens": draw.randint(1, 24), "ignore_eos": True}
        if draw.random() < 0.5:
            options |= {"temperature": draw.choice((0.3, 1.0)), "seed": number}
            options |= draw.choice(({}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}))
        else:
            options["temperature"] = 0
        options |= draw.choice(({}, {}, {"repetition_penalty": 1.2}, {"logprobs": 1}))
        made.append((prompt, SamplingParams(**options)))
    return made


def ids_of(
    llm: LLM, wanted: Requests, predictions: list[list[int]] | None = None
) -> list[list[int]]:
    ids: list[list[int]] = []
    for begin in range(0, len(wanted), NUM_AT_ONCE):
        some = wanted[begin : begin + NUM_AT_ONCE]
        prompts: list[dict[str, Any]] = [{"prompt_token_ids": prompt} for prompt, _ in some]
        if predictions is not None:
            for prompt, prediction in zip(prompts[::2], predictions[begin::2], strict=False):
                prompt["prediction"] = prediction
        outputs = llm.generate(prompts, [params for _, params in some], use_tqdm=False)
        ids += [list(output.outputs[0].token_ids) for output in outputs]
    return ids


def check(model: Path, wanted: Requests, **options: Any) -> None:
    plain = ids_of(LLM(model, max_num_seqs=8, **options), wanted)
    assert len(plain) == NUM_REQUESTS
    # Half of the requests have a prediction: the output, wrong at every sixth token.
    predictions = [[t if i % 6 != 5 else t ^ 1 for i, t in enumerate(ids)] for ids in plain]
    for method in METHODS:
        llm = LLM(model, max_num_seqs=24, speculative_config=method, **options)
        ours_of_all = ids_of(llm, wanted, predictions)
        different = [
            number
            for number, (ours, theirs) in enumerate(zip(ours_of_all, plain, strict=True))
            if ours != theirs
        ]
        assert different == [], method
        assert llm.metrics().spec_decode.num_accepted_tokens > NUM_REQUESTS


@pytest.mark.long
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("format_", FORMATS)
def test_a_small_model_of_every_format(format_: str, kv_cache_dtype: str) -> None:
    draw = random.Random(format_)
    prompts = [[draw.randrange(256) for _ in range(60)] for _ in range(40)]
    options = {"skip_tokenizer_init": True, "kv_cache_dtype": kv_cache_dtype}
    check(directory_of(FORMATS[format_]), requests(draw, prompts, longest=20), **options)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"quantization": "int8"},
        {"quantization": "int4", "kv_cache_dtype": "int8"},
        {"dtype": "bfloat16"},
    ],
)
def test_a_real_model(smollm_dir: Path, options: dict[str, Any]) -> None:
    draw = random.Random(7)
    llm = LLM(smollm_dir, max_num_seqs=1)
    tokenizer = llm.get_tokenizer()
    prompts = [tokenizer.encode(text) for text in TEXTS]
    check(smollm_dir, requests(draw, [ids for ids in prompts if ids], longest=40), **options)
