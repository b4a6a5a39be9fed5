"""The parity matrix on real arithmetic: every sampling parameter with and without speculation.

Each parameter alone and all of them at random, under `ngram` and `suffix`, greedy and sampled, in
mixed batches over tiny KV pools with chunked prefill and prefix caching. Ids, finish reasons,
log-probabilities of output and prompt are equal (==) to those of plain decoding, alone, on one
thread. tests/cpp/engine/parity_test.cc has the adversarial drafters, against an oracle of its own.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import drafter_runs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lossless import (
    VOCAB_SIZE,
    make_engine,
    reference_engine,
    to_params,
)
from test_lossless import block_bytes as target_block_bytes

from forerun import _core

Fields = dict[str, Any]
Result = tuple[list[int], str, list[Any], list[Any]]

MODELS = [
    ("llama", "float32", 2.0),
    ("gemma3_text", "bfloat16", 2.0),
    ("qwen3", "int8", 2.0),
    ("llama", "int4", 2.0),
]
METHODS = ["NGRAM", "SUFFIX"]
# Of a drafter's target, and of the drafter.
QUANTIZATIONS = {
    "float32": _core.QuantizationOptions(),
    "int8": _core.QuantizationOptions(*["int8"] * 3),
    "int4": _core.QuantizationOptions(*["int4"] * 3),
}
# Drafters that are models, each with a target of its own.
DRAFTERS = [
    "draft_model",
    "eagle bias",
    "eagle3 two layers",
    "eagle3 narrower",
    "mlp_speculator tied",
    "mlp_speculator arctic sum_lstm",
    "medusa vllm token_map",
    "mtp mimo",
    "mtp deepseek",
]


def some_tokens(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, most))]


# Each makes the fields of one parameter that is on.
PARAMETERS: dict[str, Callable[[random.Random], Fields]] = {
    "none": lambda rng: {},
    "top_k": lambda rng: {"top_k": rng.randint(1, VOCAB_SIZE)},
    "top_p": lambda rng: {"top_p": rng.uniform(0.05, 1.0)},
    "min_p": lambda rng: {"min_p": rng.random()},
    "presence_penalty": lambda rng: {"presence_penalty": rng.uniform(-2.0, 2.0)},
    "frequency_penalty": lambda rng: {"frequency_penalty": rng.uniform(-2.0, 2.0)},
    "repetition_penalty": lambda rng: {"repetition_penalty": rng.uniform(0.5, 2.0)},
    "logit_bias": lambda rng: {
        "logit_bias": {token: rng.uniform(-9.0, 9.0) for token in some_tokens(rng, 6)}
    },
    "allowed_token_ids": lambda rng: {"allowed_token_ids": [7, *some_tokens(rng, 10)]},
    "bad_words": lambda rng: {
        "bad_words": [[*some_tokens(rng, 2), rng.randrange(6)] for _ in range(12)]
    },
    "min_tokens": lambda rng: {"min_tokens": rng.randint(1, 8), "max_tokens": 30},
    "max_tokens": lambda rng: {"max_tokens": rng.randint(1, 5)},
    "stop": lambda rng: {"stop": [chr(97 + token % 26) for token in some_tokens(rng, 3)]},
    "include_stop_str_in_output": lambda rng: {
        "stop": [chr(97 + rng.randrange(26))],
        "include_stop_str_in_output": True,
    },
    "stop_token_ids": lambda rng: {"stop_token_ids": some_tokens(rng, 4)},
    "ignore_eos": lambda rng: {"ignore_eos": True},
    "skip_special_tokens": lambda rng: {
        "skip_special_tokens": False,
        "stop": [chr(97 + token % 26) for token in some_tokens(rng, 3)],
    },
    "logprobs": lambda rng: {"logprobs": rng.randint(-1, VOCAB_SIZE)},
    "prompt_logprobs": lambda rng: {"prompt_logprobs": rng.randint(-1, VOCAB_SIZE)},
}


def random_fields(rng: random.Random) -> Fields:
    return merge(*(make(rng) for make in PARAMETERS.values() if rng.random() < 0.25))


def merge(*parts: Fields) -> Fields:
    fields: Fields = {}
    for part in parts:
        fields |= part
    if len(fields.get("allowed_token_ids", [])) > 0:
        # Together they could leave nothing to sample.
        for name in ("bad_words", "min_tokens"):
            fields.pop(name, None)
    fields["min_tokens"] = min(fields.get("min_tokens", 0), fields.get("max_tokens", 24))
    return fields


def random_request(rng: random.Random, fields: Fields, is_greedy: bool) -> tuple[list[int], Fields]:
    prompt = ([3, 5, 7, 5] * 10)[: rng.randint(0, 40)] + some_tokens(rng, 12) * rng.randint(1, 3)
    base = {
        "temperature": 0.0 if is_greedy else rng.uniform(0.2, 1.5),
        "seed": rng.getrandbits(64),
        "max_tokens": 24,
        "logprobs": 0,
    }
    return prompt, {**base, **fields}


def random_engine(rng: random.Random, model: tuple[str, str, float], method: str) -> _core.Engine:
    num_blocks = rng.randint(8, 14)  # of 16 tokens; a request needs up to 8
    max_num_seqs = rng.randint(1, 4)
    ngram = _core.NgramOptions()
    ngram.prompt_lookup_min = 1
    speculative: dict[str, Any] = {
        "num_speculative_tokens": rng.randint(1, 8),
        "method": ngram,
        "adaptive": False,
    }
    if method == "SUFFIX":
        suffix = _core.SuffixOptions()
        suffix.max_spec_factor = rng.uniform(0.5, 4.0)
        suffix.min_token_prob = rng.uniform(0.0, 0.3)
        speculative["method"] = suffix
    return make_engine(
        model,
        speculative=speculative,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.randint(0, 50),
        max_model_len=128,
        kv_cache_memory_bytes=num_blocks * target_block_bytes(model),
        enable_prefix_caching=rng.random() < 0.7,
        num_threads=rng.randint(1, 2),
    )


@functools.cache
def block_bytes(drafter: str) -> int:
    """What a block of 16 tokens takes with a drafter's part."""
    room = 1 << 22
    row = drafter_runs.row_named(drafter)
    engine = drafter_runs.make_engine(row, {}, kv_cache_memory_bytes=room)
    return room // engine.limits.num_kv_blocks + 1


def random_model_engine(rng: random.Random, drafter: str, weights: str) -> _core.Engine:
    """As random_engine, with a chain, a tree, a drawn chain or a hybrid of a model."""
    max_num_seqs = rng.randint(1, 4)
    row = drafter_runs.row_named(drafter)
    kinds: list[Fields] = [
        {},
        {"draft_tree_width": rng.randint(2, 3)},
        {
            "num_speculative_tokens": None,
            "speculative_token_tree": [[0], [1], [2], [0, 0], [0, 1], [1, 1]][: rng.randint(1, 6)],
        },
        {"draft_sample_method": _core.DraftSampleMethod.PROBABILISTIC},
        {"hybrid": True, "draft_tree_width": rng.randint(1, 2)},
    ]
    has_heads = row.method in ("medusa", "mlp_speculator")
    ngram = _core.NgramOptions()
    ngram.prompt_lookup_min = 1
    speculative: dict[str, Any] = {
        "num_speculative_tokens": rng.randint(1, row.num_tokens if has_heads else 8),
        "quantization": rng.choice([None, *QUANTIZATIONS.values()]),
        **rng.choice(kinds),
    }
    return drafter_runs.make_engine(
        row,
        speculative,
        record_draft_logits=False,
        quantization=QUANTIZATIONS[weights],
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.randint(0, 50),
        max_model_len=128,
        kv_cache_memory_bytes=rng.randint(8, 14) * block_bytes(drafter),
        enable_prefix_caching=rng.random() < 0.7,
        num_threads=rng.randint(1, 2),
    )


@functools.cache
def reference_model_engine(drafter: str, weights: str) -> _core.Engine:
    row = drafter_runs.row_named(drafter)
    options: Fields = {"num_threads": 1, "max_num_seqs": 1, "enable_prefix_caching": False}
    options["quantization"] = QUANTIZATIONS[weights]
    return drafter_runs.make_engine(row, None, max_model_len=128, **options)


def set_token_bytes(engine: _core.Engine) -> None:
    size = engine.limits.vocab_size
    engine.set_token_bytes([bytes([97 + token % 26]) for token in range(size)], [2, 7, 11])


def run(engine: _core.Engine, requests: list[tuple[list[int], Fields]]) -> list[Result]:
    ids = [engine.submit(np.array(prompt, np.int32), to_params(f)) for prompt, f in requests]
    results: dict[int, Result] = {}
    parts: dict[int, tuple[list[int], list[Any], list[Any]]] = {i: ([], [], []) for i in ids}
    while engine.has_unfinished():
        for update in engine.step():
            tokens, logprobs, prompt_logprobs = parts[update.id]
            tokens += update.new_tokens
            logprobs += update.logprobs.tolist()
            prompt_logprobs += update.prompt_logprobs.tolist()
            if update.finish_reason != _core.FinishReason.NONE:
                end = f"{update.finish_reason.name} {update.num_text_bytes} {update.stop_token}"
                results[update.id] = (tokens, end, logprobs, prompt_logprobs)
    return [results[request_id] for request_id in ids]


def compare(
    rng: random.Random,
    make: Callable[[random.Random], Fields],
    method: str,
    model: tuple[str, str, float] | None = None,
) -> int:
    """Runs one mixed batch, half of it as asked for; returns how many requests were compared.

    Args:
        method: one of METHODS, with its target in `model`; or one of DRAFTERS.
    """
    if model:
        plain, engine = reference_engine(model), random_engine(rng, model, method)
    else:
        weights = rng.choice([*QUANTIZATIONS])
        plain = reference_model_engine(method, weights)
        engine = random_model_engine(rng, method, weights)
    set_token_bytes(plain)
    set_token_bytes(engine)
    requests = [
        random_request(rng, make(rng) if index % 2 == 0 else random_fields(rng), index % 4 < 2)
        for index in range(6)
    ]
    got = run(engine, requests)
    for request, result in zip(requests, got, strict=True):
        prompt, fields = request
        assert result == run(plain, [request])[0], fields
        assert len(result[2]) == len(result[0])
        wants_prompt = fields.get("prompt_logprobs") is not None
        assert len(result[3]) == (len(prompt) - 1 if wants_prompt else 0)
    assert engine.metrics().num_held_blocks == 0
    return len(requests)


@pytest.mark.parametrize("name", [*PARAMETERS, "random"])
def test_no_method_changes_anything(name: str) -> None:
    for model, method in zip(MODELS, METHODS * 2, strict=True):
        compare(random.Random(name), PARAMETERS.get(name, random_fields), method, model)


@pytest.mark.parametrize("name", [*PARAMETERS, "random"])
def test_no_model_changes_anything(name: str) -> None:
    for drafter in DRAFTERS:
        rng = random.Random(f"{name} {drafter}")
        compare(rng, PARAMETERS.get(name, random_fields), drafter)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.sets(st.sampled_from(sorted(PARAMETERS)), min_size=2, max_size=5),
    st.sampled_from(METHODS),
    st.sampled_from(MODELS),
    st.integers(0, 2**32),
)
def test_no_combination_changes_anything(
    names: set[str], method: str, model: tuple[str, str, float], seed: int
) -> None:
    def make(rng: random.Random) -> Fields:
        return merge(*(PARAMETERS[name](rng) for name in sorted(names)))

    compare(random.Random(seed), make, method, model)


def test_drafts_are_accepted_under_random_parameters() -> None:
    rng = random.Random(1)
    engine = random_engine(rng, MODELS[0], "NGRAM")
    set_token_bytes(engine)
    run(engine, [random_request(rng, random_fields(rng), True) for _ in range(12)])
    assert engine.metrics().spec_decode.num_accepted_tokens > 0


@pytest.mark.long
def test_no_method_changes_anything_in_full() -> None:
    num_seeds, num_requests = 40, 0
    for name in [*PARAMETERS, "random"]:
        for method in METHODS:
            for model in MODELS:
                make = PARAMETERS.get(name, random_fields)
                for seed in range(num_seeds):
                    rng = random.Random(f"{seed} {name} {method} {model}")
                    num_requests += compare(rng, make, method, model)
        for drafter in DRAFTERS:
            for seed in range(num_seeds):
                rng = random.Random(f"{seed} {name} {drafter}")
                num_requests += compare(rng, PARAMETERS.get(name, random_fields), drafter)
    print(
        f"parity matrix: {len(PARAMETERS) + 1} parameters x {METHODS} x {len(MODELS)} models x "
        f"{num_seeds} batches, and x {len(DRAFTERS)} models: {num_requests} requests, all equal"
    )
