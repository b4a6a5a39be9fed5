"""Options are honoured or refused: every refusal names the field, the value and what is valid."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from forerun import SamplingParams, SpeculativeConfig, _core
from forerun.engine.config import engine_options
from forerun.speculative_config import make_speculative_config


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
        "suffix_decoding_use_tree": not _core.SuffixOptions().use_tree,
        "adaptive": False,
        "acceptance_method": "block",
        "draft_sample_method": "greedy",
    }
    core = engine_options({}, make_speculative_config(suffix)).speculative
    method = core.method
    assert isinstance(method, _core.SuffixOptions)
    assert core.num_speculative_tokens == 7
    assert method.max_tree_depth == 12
    assert method.max_cached_requests == 3
    assert method.max_spec_factor == 2.5
    assert method.min_token_prob == 0.25
    assert method.use_tree is suffix["suffix_decoding_use_tree"]
    assert core.adaptive is False
    assert core.acceptance_method == _core.AcceptanceMethod.BLOCK
    ngram = {"model": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 6}
    core = engine_options({}, make_speculative_config(ngram)).speculative
    method = core.method
    assert isinstance(method, _core.NgramOptions)
    assert (core.num_speculative_tokens, method.prompt_lookup_max) == (4, 6)
    assert core.acceptance_method == _core.AcceptanceMethod.COUPLED
    rejection = {**ngram, "acceptance_method": "rejection"}
    core = engine_options({}, make_speculative_config(rejection)).speculative
    assert core.acceptance_method == _core.AcceptanceMethod.REJECTION


def test_every_option_of_models_reaches_the_engine() -> None:
    given = {
        "draft_tree_width": 3,
        "draft_tree_depth": 5,
        "draft_vocab_size": 100,
        "aux_hidden_state_layer_ids": (1, 2, 4),
        "norm_output": True,
        "norm_before_residual": False,
    }
    config = SpeculativeConfig(method="eagle3", model="d", num_speculative_tokens=9, **given)
    core = engine_options({}, config).speculative
    method = core.method
    assert isinstance(method, _core.ModelDrafterOptions)
    assert method.method == _core.ModelMethod.EAGLE3
    assert core.num_speculative_tokens == 9
    assert method.aux_hidden_state_layer_ids == [1, 2, 4]
    assert {name: getattr(method, name) for name in given} == {
        **given,
        "aux_hidden_state_layer_ids": [1, 2, 4],
    }
    for tree in ("[(0,), (1,), (0, 2)]", [[0], [1], (0, 2)]):
        core = engine_options({}, SpeculativeConfig(model="d", speculative_token_tree=tree))
        assert core.speculative.method.speculative_token_tree == [[0], [1], [0, 2]]
    sampled = {"model": "d", "draft_sample_method": "probabilistic"}
    core = engine_options({}, make_speculative_config(sampled)).speculative
    method = core.method
    assert isinstance(method, _core.ModelDrafterOptions)
    assert method.draft_sample_method == _core.DraftSampleMethod.PROBABILISTIC
    hybrid = {"model": "d", "method": "hybrid", "suffix_decoding_min_token_prob": 0.25}
    core = engine_options({}, make_speculative_config(hybrid)).speculative
    assert isinstance(core.method, _core.HybridOptions)
    assert core.method.model.model == "d"
    assert core.method.suffix.min_token_prob == 0.25


def test_vllm_keys_of_drafters_with_one_meaning_are_accepted() -> None:
    given = {"model": "d", "draft_tensor_parallel_size": 1, "quantization": None}
    assert SpeculativeConfig(**given, max_model_len=None, disable_by_batch_size=None).uses_model
    for name in ("mtp", "deepseek_mtp", "mimo_mtp", "qwen3_next_mtp"):
        assert SpeculativeConfig(method=name, num_speculative_tokens=1).method == "mtp"
    assert not SpeculativeConfig(model="[ngram]", num_speculative_tokens=3).uses_model


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
    assert "has no effect on the CPU; kv_cache_memory_bytes sets the size of the KV" in caplog.text


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
