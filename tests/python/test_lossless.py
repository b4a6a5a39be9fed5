"""Contract 1 on real arithmetic.

Whatever the method, the batch, the pool, the chunks, the threads and the prefix cache, every
request's ids are those of plain decoding alone on one thread.
"""

import collections
import functools
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun import _core

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from tiny_model import write_tiny_model

VOCAB_SIZE = 48
# Layers x keys and values x heads x tokens of a block, and the channels of each.
BLOCK_SLOTS, NUM_CHANNELS = 2 * 2 * 2 * 16, 8
# By how weights are stored: the other options for it.
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {
        "dtype": "float32",
        "quantization": _core.QuantizationOptions(*["int8"] * 3),
        "kv_cache_dtype": "int8",
    },
    "int4": {
        "dtype": "float32",
        "quantization": _core.QuantizationOptions(*["int4"] * 3),
        "kv_cache_dtype": "bfloat16",
    },
}
MODELS = [
    (family, weights, scale)
    for family in ("llama", "qwen3", "gemma3_text")
    for weights in FORMATS
    for scale in (0.7, 2.0)
]


@functools.cache
def model_directory(family: str, scale: float) -> str:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="forerun-tiny-"))
    return str(write_tiny_model(folder, family, VOCAB_SIZE, seed=7, scale=scale))


def make_engine(model: tuple[str, str, float], **options: Any) -> _core.Engine:
    family, weights, scale = model
    engine_options = _core.EngineOptions()
    engine_options.model = model_directory(family, scale)
    speculative = _core.SpeculativeOptions()
    for name, value in options.pop("speculative", {}).items():
        setattr(speculative, name, value)
    engine_options.speculative = speculative
    engine_options.check_invariants = True
    for name, value in {**FORMATS[weights], **options}.items():
        setattr(engine_options, name, value)
    return _core.Engine(engine_options)


def block_bytes(model: tuple[str, str, float]) -> int:
    """Of 16 tokens."""
    options = FORMATS[model[1]]
    dtype = options.get("kv_cache_dtype", options["dtype"])
    slot_bytes = {"float32": 4 * NUM_CHANNELS, "bfloat16": 2 * NUM_CHANNELS}
    return BLOCK_SLOTS * slot_bytes.get(dtype, NUM_CHANNELS + 4)  # int8 has a scale


@functools.cache
def reference_engine(model: tuple[str, str, float], device: str = "cpu") -> _core.Engine:
    return make_engine(
        model,
        device=device,
        num_threads=1,
        max_num_seqs=1,
        max_model_len=512,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=32 * BLOCK_SLOTS * 4 * NUM_CHANNELS,
    )


def run(engine: _core.Engine, requests: list[tuple[list[int], Any]]) -> list[tuple[list[int], str]]:
    ids = [engine.submit(np.array(prompt, np.int32), params) for prompt, params in requests]
    tokens: dict[int, list[int]] = {request_id: [] for request_id in ids}
    reasons: dict[int, str] = {}
    while engine.has_unfinished():
        for update in engine.step():
            tokens[update.id] += list(update.new_tokens)
            if update.finish_reason != _core.FinishReason.NONE:
                reasons[update.id] = update.finish_reason.name
    assert set(reasons.values()) <= {"STOP", "LENGTH"}
    return [(tokens[request_id], reasons[request_id]) for request_id in ids]


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    shared = draw(st.integers(0, 40))
    own = draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12))
    return ([3, 5, 7, 5] * 10)[:shared] + own * draw(st.integers(1, 3))


@st.composite
def sampling(draw: st.DrawFn) -> dict[str, Any]:
    params: dict[str, Any] = {
        "temperature": draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "max_tokens": draw(st.integers(1, 60)),
        "ignore_eos": draw(st.booleans()),
    }
    if draw(st.booleans()):
        params["top_k"] = draw(st.integers(1, VOCAB_SIZE))
        params["top_p"] = draw(st.floats(0.05, 1.0))
        params["min_p"] = draw(st.floats(0.0, 0.5))
    if draw(st.integers(0, 4)) == 0:
        params["speculative"] = False
    if draw(st.integers(0, 3)) == 0:
        params["max_draft_tokens"] = draw(st.integers(0, 8))
    return params


@st.composite
def ngram_options(draw: st.DrawFn) -> _core.NgramOptions:
    options = _core.NgramOptions()
    options.prompt_lookup_min = draw(st.integers(1, 3))
    options.prompt_lookup_max = 3 + draw(st.integers(0, 3))
    return options


@st.composite
def suffix_options(draw: st.DrawFn) -> _core.SuffixOptions:
    options = _core.SuffixOptions()
    options.max_spec_factor = draw(st.floats(0.5, 4.0))
    options.min_token_prob = draw(st.floats(0.0, 0.5))
    options.max_cached_requests = draw(st.integers(0, 4))
    options.use_tree = draw(st.sampled_from([True, True, False]))
    return options


@st.composite
def engine_settings(draw: st.DrawFn) -> dict[str, Any]:
    num_drafted = draw(st.integers(0, 8))
    speculative: dict[str, Any] = {"adaptive": draw(st.booleans())}
    if num_drafted > 0:
        speculative["num_speculative_tokens"] = num_drafted
        speculative["method"] = draw(ngram_options() | suffix_options())
    max_num_seqs = draw(st.integers(1, 5))
    block_size = draw(st.sampled_from([16, 32]))
    max_model_len = draw(st.integers(90, 160))
    num_blocks = -(-max_model_len // block_size) + draw(st.integers(0, 8))
    return {
        "speculative": speculative,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + draw(st.integers(0, 60)),
        "block_size": block_size,
        "max_model_len": max_model_len,
        "num_blocks": num_blocks,
        "enable_prefix_caching": draw(st.booleans()),
        "num_threads": draw(st.integers(1, 3)),
    }


def to_params(fields: dict[str, Any]) -> _core.SamplingParams:
    params = _core.SamplingParams()
    for name, value in fields.items():
        setattr(params, name, value)
    return params


# Drafts that were accepted, by method, over the examples so far.
num_accepted: collections.Counter[str] = collections.Counter()


def check(
    model: tuple[str, str, float],
    options: dict[str, Any],
    requests: list[tuple[list[int], dict[str, Any]]],
    device: str = "cpu",
) -> _core.EngineMetrics:
    """Returns the engine's counters."""
    options = {**options, "device": device}
    options["kv_cache_memory_bytes"] = (
        options.pop("num_blocks") * block_bytes(model) * options["block_size"] // 16
    )
    engine = make_engine(model, **options)
    requests = [(prompt[: options["max_model_len"] - 1], fields) for prompt, fields in requests]
    # Twice, so that the second round finds prefixes and past outputs.
    for _ in range(2):
        got = run(engine, [(prompt, to_params(fields)) for prompt, fields in requests])
        for (prompt, fields), result in zip(requests, got, strict=True):
            room = options["max_model_len"] - len(prompt)
            alone = {**fields, "max_tokens": min(fields["max_tokens"], room)}
            plain = reference_engine(model, device)
            assert result == run(plain, [(prompt, to_params(alone))])[0]
    metrics = engine.metrics()
    method = options["speculative"].get("method")
    tree = " tree" if isinstance(method, _core.SuffixOptions) and method.use_tree else ""
    num_accepted[type(method).__name__ + tree] += metrics.spec_decode.num_accepted_tokens
    assert metrics.num_held_blocks == 0
    assert (
        metrics.num_free_blocks + metrics.num_cached_blocks + metrics.num_held_blocks
        == metrics.num_total_blocks
    )
    return metrics


REQUESTS = st.lists(st.tuples(prompts(), sampling()), min_size=1, max_size=6)
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=160, derandomize=True, **QUIET)
@given(st.sampled_from(MODELS), engine_settings(), REQUESTS)
def test_output_is_that_of_plain_decoding(model, options, requests):
    check(model, options, requests)


def test_drafts_were_accepted():
    """The examples above, over which nothing was found: had nothing been drafted, they are void."""
    if not num_accepted:
        test_output_is_that_of_plain_decoding()
    for method in ("NgramOptions", "SuffixOptions", "SuffixOptions tree"):
        assert num_accepted[method] > 200, num_accepted


@pytest.mark.long
@settings(max_examples=2000, **QUIET)
@given(st.sampled_from(MODELS), engine_settings(), REQUESTS)
def test_output_is_that_of_plain_decoding_at_length(model, options, requests):
    check(model, options, requests)
