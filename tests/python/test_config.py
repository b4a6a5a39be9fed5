"""Options are honoured or refused: every refusal names the field, the value and what is valid."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forerun import LLM, InvalidArgumentError, SamplingParams, SpeculativeConfig, _core
from forerun.engine.config import engine_options
from forerun.speculative_config import METHODS, make_speculative_config


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, (5, 5)),
        ({"prompt_lookup_max": 4}, (4, 4)),
        ({"prompt_lookup_min": 3}, (3, 3)),
        ({"prompt_lookup_max": 4, "prompt_lookup_min": 2}, (4, 2)),
    ],
)
def test_lookup_lengths_settle_as_in_vllm(given: dict[str, int], settled: tuple[int, int]) -> None:
    config = SpeculativeConfig(method="ngram", num_speculative_tokens=3, **given)
    assert (config.prompt_lookup_max, config.prompt_lookup_min) == settled


def test_every_speculative_option_reaches_the_engine() -> None:
    suffix = {
        "method": "suffix",
        "num_speculative_tokens": 7,
        "suffix_decoding_max_tree_depth": 12,
        "suffix_decoding_max_cached_requests": 3,
        "suffix_decoding_max_spec_factor": 2.5,
        "suffix_decoding_min_token_prob": 0.25,
        "suffix_decoding_use_tree": not _core.SpeculativeOptions().suffix_use_tree,
        "adaptive": False,
        "acceptance_method": "block",
        "draft_sample_method": "greedy",
    }
    core = engine_options({}, make_speculative_config(suffix)).speculative
    assert core.method == _core.SpeculativeMethod.SUFFIX
    assert core.num_speculative_tokens == 7
    assert core.suffix_max_tree_depth == 12
    assert core.suffix_max_cached_requests == 3
    assert core.suffix_max_spec_factor == 2.5
    assert core.suffix_min_token_prob == 0.25
    assert core.suffix_use_tree is suffix["suffix_decoding_use_tree"]
    assert core.adaptive is False
    assert core.acceptance_method == _core.AcceptanceMethod.BLOCK
    assert core.draft_sample_method == _core.DraftSampleMethod.GREEDY
    ngram = {"model": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 6}
    core = engine_options({}, make_speculative_config(ngram)).speculative
    assert core.method == _core.SpeculativeMethod.NGRAM
    assert (core.num_speculative_tokens, core.prompt_lookup_max) == (4, 6)
    assert core.acceptance_method == _core.AcceptanceMethod.COUPLED
    rejection = {**ngram, "acceptance_method": "rejection"}
    core = engine_options({}, make_speculative_config(rejection)).speculative
    assert core.acceptance_method == _core.AcceptanceMethod.REJECTION


def test_every_option_of_models_reaches_the_engine() -> None:
    given = {
        "draft_tree_width": 3,
        "draft_tree_depth": 5,
        "aux_hidden_state_layer_ids": (1, 2, 4),
        "norm_output": True,
        "norm_before_residual": False,
    }
    config = SpeculativeConfig(method="eagle3", model="d", num_speculative_tokens=9, **given)
    core = engine_options({}, config).speculative
    assert core.method == _core.SpeculativeMethod.EAGLE3
    assert core.num_speculative_tokens == 9
    assert core.aux_hidden_state_layer_ids == [1, 2, 4]
    assert {name: getattr(core, name) for name in given} == {
        **given,
        "aux_hidden_state_layer_ids": [1, 2, 4],
    }
    for tree in ("[(0,), (1,), (0, 2)]", [[0], [1], (0, 2)]):
        core = engine_options({}, SpeculativeConfig(model="d", speculative_token_tree=tree))
        assert core.speculative.speculative_token_tree == [[0], [1], [0, 2]]
    sampled = {"model": "d", "draft_sample_method": "probabilistic"}
    core = engine_options({}, make_speculative_config(sampled)).speculative
    assert not core.hybrid
    assert core.draft_sample_method == _core.DraftSampleMethod.PROBABILISTIC
    hybrid = {"model": "d", "method": "hybrid", "suffix_decoding_min_token_prob": 0.25}
    core = engine_options({}, make_speculative_config(hybrid)).speculative
    assert core.hybrid
    assert core.suffix_min_token_prob == 0.25


def test_vllm_keys_of_drafters_with_one_meaning_are_accepted() -> None:
    given = {"model": "d", "draft_tensor_parallel_size": 1, "quantization": None}
    assert SpeculativeConfig(**given, max_model_len=None, disable_by_batch_size=None).uses_model
    for name in ("mtp", "deepseek_mtp", "mimo_mtp", "qwen3_next_mtp"):
        assert SpeculativeConfig(method=name, num_speculative_tokens=1).method == "mtp"
    assert not SpeculativeConfig(model="[ngram]", num_speculative_tokens=3).uses_model


BAD_SPECULATIVE: list[tuple[Any, str, str]] = [
    ("ngram", "speculative_config", "a SpeculativeConfig, a dict or None"),
    ({}, "method", f"{METHODS[-1]!r}, or a model"),
    ({"method": "eagle9"}, "method", "'ngram', 'suffix', 'grammar', 'draft_model', 'eagle'"),
    ({"method": "eagle"}, "model", "a drafter with 'eagle'"),
    ({"method": "suffix", "model": "some/drafter"}, "model", "None: 'suffix' is no model"),
    ({"model": ""}, "model", "a directory, a hub id or None"),
    ({"model": 3}, "model", "a directory, a hub id or None"),
    ({"method": "suffix", "revision": "main"}, "revision", "no such option with 'suffix'"),
    ({"method": "ngram", "draft_tree_width": 2}, "draft_tree_width", "no such option"),
    ({"method": "suffix", "norm_output": False}, "norm_output", "no such option"),
    ({"model": "d", "draft_tree_width": 65}, "draft_tree_width", "at most 64"),
    ({"model": "d", "draft_tree_width": 2.0}, "draft_tree_width", "an integer"),
    ({"model": "d", "draft_tree_depth": 0}, "draft_tree_depth", "at least 1"),
    ({"method": "ngram", "speculative_token_tree": [[0]]}, "speculative_token_tree", "no such"),
    *(
        ({"model": "d", "speculative_token_tree": tree}, "speculative_token_tree", expected)
        for tree, expected in [
            ("(0,", "paths of ranks"),
            ("import os", "paths of ranks"),
            ([], "paths of ranks"),
            (7, "paths of ranks"),
            ([0, 1], "paths of ranks"),
            (["0"], "paths of ranks"),
            ([[0.5]], "an integer"),
            ([[-1]], "an integer from 0"),
            ([[64]], "ranks from 0 to 63"),
            ([[]], "at least one rank"),
            ([[0], [0]], "every path once"),
            ([[0], [1, 0]], "the path before it, (1,)"),
        ]
    ),
    (
        {"model": "d", "speculative_token_tree": [[0]], "draft_tree_width": 2},
        "speculative_token_tree",
        "nothing beside draft_tree_width",
    ),
    (
        {"model": "d", "speculative_token_tree": [[0]], "num_speculative_tokens": 2},
        "num_speculative_tokens",
        "1, the nodes of speculative_token_tree",
    ),
    (
        {"model": "d", "speculative_token_tree": [[0]], "method": "hybrid"},
        "speculative_token_tree",
        "with a hybrid",
    ),
    ({"model": "d", "norm_output": 1}, "norm_output", "True or False"),
    ({"method": "mtp", "norm_target_state": 0}, "norm_target_state", "True or False"),
    ({"method": "ngram", "norm_target_state": True}, "norm_target_state", "no such option"),
    ({"model": "d", "norm_before_residual": "no"}, "norm_before_residual", "True or False"),
    ({"model": "d", "aux_hidden_state_layer_ids": 2}, "aux_hidden_state_layer_ids", "a list"),
    ({"model": "d", "aux_hidden_state_layer_ids": [-1]}, "aux_hidden_state_layer_ids", "from 0"),
    ({"model": "d", "prompt_lookup_max": 3}, "prompt_lookup_max", "no such option with a model"),
    ({"method": "hybrid", "prompt_lookup_max": 3}, "prompt_lookup_max", "with 'hybrid'"),
    (
        {"method": "hybrid", "draft_sample_method": "probabilistic"},
        "draft_sample_method",
        "'greedy' with method 'hybrid'",
    ),
    ({"model": "d", "revision": 3}, "revision", "a string"),
    (
        {"model": "d", "draft_tensor_parallel_size": 2},
        "draft_tensor_parallel_size",
        "or 1: the engine",
    ),
    ({"model": "d", "quantization": "fp8"}, "quantization", "None: quantized"),
    ({"model": "d", "max_model_len": 0}, "max_model_len", "from 1"),
    ({"model": "d", "disable_by_batch_size": 8}, "disable_by_batch_size", "'adaptive' shortens"),
    ({"model": "d", "parallel_drafting": True}, "parallel_drafting", "a block in one pass"),
    ({"model": "d", "use_heterogeneous_vocab": 1}, "use_heterogeneous_vocab", "True or False"),
    ({"method": "suffix", "use_heterogeneous_vocab": True}, "use_heterogeneous_vocab", "no such"),
    (
        {"model": "d", "draft_tree_width": 2, "draft_sample_method": "probabilistic"},
        "draft_tree_width",
        "1 with draft_sample_method 'probabilistic'",
    ),
    ({"method": "grammar", "prompt_lookup_max": 3}, "prompt_lookup_max", "no such option"),
    (
        {"method": "grammar", "suffix_decoding_max_tree_depth": 9},
        "suffix_decoding_max_tree_depth",
        "no such option",
    ),
    ({"method": "ngram"}, "num_speculative_tokens", "an integer of at least 1"),
    ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens", "at least 1"),
    ({"method": "ngram", "num_speculative_tokens": "5"}, "num_speculative_tokens", "an integer"),
    ({"method": "ngram", "num_speculative_tokens": True}, "num_speculative_tokens", "an integer"),
    ({"method": "suffix", "num_speculative_tokens": -1}, "num_speculative_tokens", "at least 1"),
    (
        {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 0},
        "prompt_lookup_min",
        "at least 1",
    ),
    (
        {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 2,
            "prompt_lookup_min": 3,
        },
        "prompt_lookup_max",
        "at least prompt_lookup_min, 3",
    ),
    ({"method": "suffix", "prompt_lookup_max": 3}, "prompt_lookup_max", "no such option"),
    (
        {"method": "ngram", "num_speculative_tokens": 3, "suffix_decoding_max_tree_depth": 9},
        "suffix_decoding_max_tree_depth",
        "no such option with 'ngram'",
    ),
    (
        {"method": "suffix", "suffix_decoding_min_token_prob": 1.5},
        "suffix_decoding_min_token_prob",
        "from 0 to 1",
    ),
    (
        {"method": "suffix", "suffix_decoding_max_spec_factor": float("nan")},
        "suffix_decoding_max_spec_factor",
        "above 0",
    ),
    (
        {"method": "suffix", "suffix_decoding_max_cached_requests": -1},
        "suffix_decoding_max_cached_requests",
        "at least 0",
    ),
    (
        {"method": "suffix", "sufix_decoding_max_tree_depth": 9},
        "sufix_decoding_max_tree_depth",
        "did you mean 'suffix_decoding_max_tree_depth'?",
    ),
    ({"method": "suffix", "adaptive": 1}, "adaptive", "True or False"),
    (
        {"method": "suffix", "acceptance_method": "typical"},
        "acceptance_method",
        "'coupled', 'rejection' or 'block'",
    ),
    (
        {"method": "suffix", "acceptance_method": None},
        "acceptance_method",
        "'coupled', 'rejection' or 'block'",
    ),
    (
        {"method": "suffix", "draft_sample_method": "gumbel"},
        "draft_sample_method",
        "'greedy' or 'probabilistic'",
    ),
    (
        {"method": "suffix", "draft_sample_method": "probabilistic"},
        "draft_sample_method",
        "'greedy': ngram, suffix and grammar guess with certainty",
    ),
]


@pytest.mark.parametrize(("config", "field", "expected"), BAD_SPECULATIVE)
def test_wrong_speculation_is_refused_at_construction(
    config: Any, field: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        make_speculative_config(config)
    assert error.value.field == field
    assert expected in error.value.expected
    with pytest.raises(InvalidArgumentError, match=field):
        LLM(tmp_path / "never-looked-at", speculative_config=config)


BAD_OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"max_num_seq": 4}, "max_num_seq", "did you mean 'max_num_seqs'?"),
    ({"flash_attention": True}, "flash_attention", "an option of LLM"),
    ({"max_num_seqs": 0}, "max_num_seqs", "at least 1"),
    ({"max_num_seqs": 2.0}, "max_num_seqs", "an integer"),
    ({"max_num_seqs": 1 << 40}, "max_num_seqs", "an integer from"),
    ({"max_num_batched_tokens": 1}, "max_num_batched_tokens", "at least 32"),
    ({"max_model_len": 1}, "max_model_len", "at least 2"),
    ({"max_model_len": "8k"}, "max_model_len", "an integer"),
    ({"block_size": 17}, "block_size", "a multiple of"),
    ({"kv_cache_memory_bytes": -5}, "kv_cache_memory_bytes", "at least 1"),
    ({"num_threads": -1}, "num_threads", "at least 0"),
    ({"seed": -1}, "seed", "an integer from 0"),
    ({"dtype": "int8"}, "dtype", "'bfloat16'"),
    ({"dtype": 16}, "dtype", "'bfloat16'"),
    ({"enable_prefix_caching": "yes"}, "enable_prefix_caching", "True or False"),
    ({"tensor_parallel_size": 2}, "tensor_parallel_size", "1: the engine runs in one process"),
    ({"tensor_parallel_size": True}, "tensor_parallel_size", "1: the engine"),
    ({"quantization": "awq"}, "quantization", "None: quantized weights are not supported"),
    ({"trust_remote_code": "yes"}, "trust_remote_code", "no code of a model is ever run"),
    ({"gpu_memory_utilization": 90}, "gpu_memory_utilization", "a fraction in (0, 1]"),
    ({"skip_tokenizer_init": 1}, "skip_tokenizer_init", "True or False"),
]


@pytest.mark.parametrize(("options", "field", "expected"), BAD_OPTIONS)
def test_wrong_options_are_refused_before_the_model_is_looked_for(
    options: dict[str, Any], field: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        LLM(tmp_path / "never-looked-at", **options)
    assert error.value.field == field
    assert expected in error.value.expected


def test_every_engine_option_reaches_the_engine() -> None:
    options = {
        "dtype": "float32",
        "max_model_len": 77,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 55,
        "block_size": 32,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": 1 << 40,
        "seed": 2**64 - 1,
        "num_threads": 1,
        "check_invariants": True,
    }
    core = engine_options(options, None)
    assert {name: getattr(core, name) for name in options} == options
    core = engine_options({"seed": None, "max_model_len": None, "max_num_seqs": np.int64(2)}, None)
    assert (core.seed, core.max_model_len, core.max_num_seqs) == (0, None, 2)


def test_a_torch_dtype_is_a_dtype() -> None:
    import torch

    assert engine_options({"dtype": torch.bfloat16}, None).dtype == "bfloat16"


def test_vllm_options_with_one_meaning_are_accepted(caplog: pytest.LogCaptureFixture) -> None:
    engine_options(
        {
            "tensor_parallel_size": 1,
            "trust_remote_code": True,
            "enforce_eager": True,
            "disable_log_stats": False,
            "enable_chunked_prefill": True,
            "quantization": None,
            "load_format": "auto",
        },
        None,
    )
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "forerun"):
        engine_options({"gpu_memory_utilization": 0.9}, None)
    assert "has no effect on the CPU" in caplog.text


BAD_PARAMS: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": float("nan")}, "temperature", "a finite number >= 0"),
    ({"temperature": -0.1}, "temperature", "a finite number >= 0"),
    ({"temperature": float("inf")}, "temperature", "a finite number >= 0"),
    ({"temperature": "hot"}, "temperature", "a number"),
    ({"top_k": -2}, "top_k", "0 or -1 for all"),
    ({"top_k": 1.5}, "top_k", "an integer"),
    ({"top_p": 0.0}, "top_p", "in (0, 1]"),
    ({"top_p": 1.01}, "top_p", "in (0, 1]"),
    ({"min_p": -0.5}, "min_p", "in [0, 1]"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": 10**12}, "max_tokens", "an integer from"),
    ({"min_tokens": 17}, "min_tokens", "0 to max_tokens"),
    ({"seed": -2}, "seed", "an integer from -1"),
    ({"seed": 2**64}, "seed", "an integer from -1"),
    ({"stop": [""]}, "stop", "at least one byte"),
    ({"stop": 3}, "stop", "a string or a list of strings"),
    ({"stop": ["a", 3]}, "stop", "a string"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "an integer from 0"),
    ({"stop_token_ids": 5}, "stop_token_ids", "a list of token ids"),
    ({"stop_token_ids": "5"}, "stop_token_ids", "a list of token ids"),
    ({"ignore_eos": "no"}, "ignore_eos", "True or False"),
    ({"speculative": None}, "speculative", "True or False"),
    ({"max_draft_tokens": -1}, "max_draft_tokens", "at least 0"),
    ({"n": 0}, "n", "an integer from 1"),
    ({"n": 2, "temperature": 0}, "n", "1 with temperature=0"),
    ({"presence_penalty": 2.5}, "presence_penalty", "[-2, 2]"),
    ({"frequency_penalty": "much"}, "frequency_penalty", "a number"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"logit_bias": [1, 2]}, "logit_bias", "a dict"),
    ({"logit_bias": {1: 101}}, "logit_bias", "[-100, 100]"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "at least one token id"),
    ({"bad_words": "word"}, "bad_words", "a list of strings"),
    ({"bad_words": [" "]}, "bad_words", "at least one character"),
    ({"logprobs": -2}, "logprobs", "-1 for the whole vocabulary"),
    ({"prompt_logprobs": 1.5}, "prompt_logprobs", "an integer"),
    ({"skip_special_tokens": 0}, "skip_special_tokens", "True or False"),
    ({"detokenize": False, "stop": "x"}, "detokenize", "True where there are stop strings"),
    ({"temprature": 1.0}, "temprature", "did you mean 'temperature'?"),
]


@pytest.mark.parametrize(("params", "field", "expected"), BAD_PARAMS)
def test_wrong_sampling_parameters_are_refused_at_construction(
    params: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        SamplingParams(**params)
    assert error.value.field == field
    assert expected in error.value.expected
    assert isinstance(error.value, ValueError)


def test_every_sampling_parameter_reaches_the_engine() -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.75,
        "min_p": 0.125,
        "seed": 2**64 - 1,
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["x", "é"],
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "speculative": False,
        "max_draft_tokens": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {3: -1.5, 7: 100.0},
        "allowed_token_ids": [3, 4],
        "logprobs": 5,
        "prompt_logprobs": -1,
        "skip_special_tokens": False,
    }
    core = SamplingParams(**given)._to_core(100)
    assert {name: getattr(core, name) for name in given} == given
    core = SamplingParams(max_tokens=None, stop="x", n=1, logprobs=None)._to_core(100)
    assert (core.max_tokens, core.stop, core.seed, core.max_draft_tokens) == (
        100,
        ["x"],
        None,
        None,
    )
