"""Bad input gives the right exception with the field and what is valid; the engine serves on."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import forerun
from forerun import LLM, CheckpointError, InvalidArgumentError, SamplingParams, SpeculativeConfig

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from tiny_model import write_tiny_model

Damage = Callable[[pathlib.Path], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_tiny_model(tmp_path_factory.mktemp("bad-input") / "model")


@pytest.fixture(scope="module")
def llm(model: pathlib.Path) -> Iterator[LLM]:
    """An engine that must answer the same before and after everything in this file."""
    llm = LLM(str(model), skip_tokenizer_init=True, max_model_len=128, max_num_seqs=4)
    before = answer(llm)
    yield llm
    assert answer(llm) == before


def answer(llm: LLM) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    [output] = llm.generate([[1, 2, 3, 1, 2]], params, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def expect(field: str, action: Callable[[], Any], error: type = InvalidArgumentError) -> None:
    with pytest.raises(error) as caught:
        action()
    assert field in caught.value.field
    assert caught.value.expected
    assert caught.value.field in str(caught.value)
    assert caught.value.expected in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, forerun.ForerunError)


SAMPLING: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "hot"),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_p", float("nan")),
    ("min_p", -0.1),
    ("min_p", 1.5),
    ("seed", -2),
    ("max_tokens", 0),
    ("max_tokens", "many"),
    ("min_tokens", -1),
    ("min_tokens", 17),
    ("stop", ""),
    ("stop", ["ok", ""]),
    ("stop", 5),
    ("stop_token_ids", "12"),
    ("ignore_eos", 1),
    ("max_draft_tokens", -1),
    ("speculative", "yes"),
    ("n", 0),
    ("n", 20_000),
    ("n", 1.5),
    ("presence_penalty", 2.1),
    ("presence_penalty", float("nan")),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", "often"),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", float("inf")),
    ("logit_bias", {1: 200.0}),
    ("logit_bias", {1: float("nan")}),
    ("logit_bias", {-1: 2.0}),
    ("logit_bias", {"one": 2.0}),
    ("logit_bias", {1: "much"}),
    ("logit_bias", [(1, 2.0)]),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [-1]),
    ("allowed_token_ids", "12"),
    ("allowed_token_ids", 3),
    ("bad_words", ""),
    ("bad_words", ["fine", ""]),
    ("bad_words", [3]),
    ("bad_words", 3),
    ("logprobs", -2),
    ("logprobs", 1.5),
    ("prompt_logprobs", -2),
    ("prompt_logprobs", "all"),
    ("skip_special_tokens", None),
    ("detokenize", "yes"),
    ("temprature", 0.5),
]


@pytest.mark.parametrize(("field", "value"), SAMPLING)
def test_sampling_params(field: str, value: Any) -> None:
    expect(field, lambda: SamplingParams(**{field: value}))


SPECULATIVE: list[tuple[str, dict[str, Any]]] = [
    ("method", {"method": "telepathy", "num_speculative_tokens": 3}),
    ("method", {"num_speculative_tokens": 3}),
    ("num_speculative_tokens", {"method": "ngram"}),
    ("num_speculative_tokens", {"method": "ngram", "num_speculative_tokens": 0}),
    ("num_speculative_tokens", {"method": "suffix", "num_speculative_tokens": 2.5}),
    ("prompt_lookup_min", {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 0}),
    (
        "prompt_lookup_max",
        {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 4,
            "prompt_lookup_max": 2,
        },
    ),
    ("prompt_lookup_max", {"method": "suffix", "prompt_lookup_max": 4}),
    ("suffix_decoding_max_tree_depth", {"method": "suffix", "suffix_decoding_max_tree_depth": 0}),
    (
        "suffix_decoding_max_spec_factor",
        {"method": "suffix", "suffix_decoding_max_spec_factor": -1.0},
    ),
    ("suffix_decoding_min_token_prob", {"method": "suffix", "suffix_decoding_min_token_prob": 2.0}),
    ("acceptance_method", {"method": "suffix", "acceptance_method": "lossy"}),
    ("acceptance_method", {"method": "suffix", "acceptance_method": 1}),
    ("draft_sample_method", {"method": "suffix", "draft_sample_method": "probabilistic"}),
    ("num_spec_tokens", {"method": "suffix", "num_spec_tokens": 3}),
]


@pytest.mark.parametrize(("field", "config"), SPECULATIVE)
def test_speculative_config(field: str, config: dict[str, Any], model: pathlib.Path) -> None:
    expect(field, lambda: SpeculativeConfig(**config))
    expect(field, lambda: LLM(str(model), skip_tokenizer_init=True, speculative_config=config))


ENGINE: list[tuple[str, Any]] = [
    ("max_model_len", 0),
    ("max_model_len", 100_000),
    ("max_num_seqs", 0),
    ("max_num_batched_tokens", 3),
    ("block_size", 17),
    ("kv_cache_memory_bytes", 10),
    ("num_threads", -1),
    ("dtype", "int3"),
    ("seed", -5),
    ("enable_prefix_caching", "yes"),
    ("tensor_parallel_size", 2),
    ("max_num_seq", 4),
]


@pytest.mark.parametrize(("field", "value"), ENGINE)
def test_engine_options(field: str, value: Any, model: pathlib.Path) -> None:
    expect(field, lambda: LLM(str(model), skip_tokenizer_init=True, **{field: value}))


def test_unknown_names_suggest_the_nearest(model: pathlib.Path) -> None:
    with pytest.raises(InvalidArgumentError, match="max_num_seqs"):
        LLM(str(model), skip_tokenizer_init=True, max_num_seq=4)
    with pytest.raises(InvalidArgumentError, match="temperature"):
        SamplingParams(temprature=0.5)


PROMPTS: list[tuple[str, Any]] = [
    ("prompt", [[]]),
    ("prompt", [[1, 64]]),
    ("prompt", [[1, -1]]),
    ("prompt", [[1, 2**40]]),
    ("prompt", [[1, "two"]]),
    ("prompt", [[1, 2.5]]),
    ("prompt", [[1] * 128]),
    ("prompt", [{"tokens": [1]}]),
    ("prompt", 7),
    ("prompt", [None]),
    ("skip_tokenizer_init", "text without a tokenizer"),
]


@pytest.mark.parametrize(("field", "prompts"), PROMPTS)
def test_prompts(field: str, prompts: Any, llm: LLM) -> None:
    expect(field, lambda: llm.generate(prompts, SamplingParams(max_tokens=2), use_tqdm=False))
    assert not llm.metrics().num_running_requests


def test_a_bad_prompt_among_good_ones_is_named_and_none_runs(llm: LLM) -> None:
    before = llm.metrics().num_generated_tokens
    expect("prompts[1]", lambda: llm.generate([[1], [999], [2]], use_tqdm=False))
    assert llm.metrics().num_generated_tokens == before


def test_stop_token_out_of_range_and_params_of_another_count(llm: LLM) -> None:
    expect("stop_token_ids", lambda: llm.generate([[1]], SamplingParams(stop_token_ids=[64])))
    expect("sampling_params", lambda: llm.generate([[1], [2]], [SamplingParams()]))
    expect("sampling_params", lambda: llm.generate([[1]], {"temperature": 0}))


BEYOND_THE_VOCABULARY: list[tuple[str, Any]] = [
    ("allowed_token_ids", [1, 64]),
    ("logit_bias", {64: 1.0}),
    ("logprobs", 65),
    ("prompt_logprobs", 65),
]


@pytest.mark.parametrize(("field", "value"), BEYOND_THE_VOCABULARY)
def test_what_the_vocabulary_does_not_have(field: str, value: Any, llm: LLM) -> None:
    expect(field, lambda: llm.generate([[1]], SamplingParams(**{field: value}), use_tqdm=False))


def test_what_needs_a_tokenizer_or_sampling(llm: LLM) -> None:
    params = SamplingParams(bad_words=["word"])
    expect("skip_tokenizer_init", lambda: llm.generate([[1]], params, use_tqdm=False))
    expect("n", lambda: SamplingParams(n=2, temperature=0))
    expect("detokenize", lambda: SamplingParams(detokenize=False, stop="x"))


def edit_config(**changes: Any) -> Damage:
    def damage(directory: pathlib.Path) -> None:
        path = directory / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return damage


def cut_weights(num_bytes: int) -> Damage:
    def damage(directory: pathlib.Path) -> None:
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:num_bytes])

    return damage


def edit_weights(change: Callable[[dict[str, Any]], None]) -> Damage:
    def damage(directory: pathlib.Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return damage


def remove(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


NORM = "model.norm.weight"
DAMAGES: list[tuple[str, Damage]] = [
    ("model", remove("config.json")),
    ("model", remove("model.safetensors")),
    ("model.safetensors", cut_weights(4)),
    ("model.safetensors", cut_weights(200)),
    ("model.safetensors", cut_weights(-40)),
    ("config.json", lambda d: (d / "config.json").write_text("{ not json")),
    ("model_type", edit_config(model_type="rwkv", architectures=["RwkvForCausalLM"])),
    ("hidden_size", edit_config(hidden_size=-32)),
    ("hidden_size", edit_config(hidden_size="wide")),
    ("num_key_value_heads", edit_config(num_key_value_heads=3)),
    ("embed_tokens", edit_config(vocab_size=None)),
    ("rope", edit_config(rope_scaling={"rope_type": "longrope", "factor": 2.0})),
    ("hidden_act", edit_config(hidden_act="swishy")),
    ("quantization_config", edit_config(quantization_config={"quant_method": "gptq"})),
    ("q_proj", edit_config(head_dim=16)),
    ("model.layers.2", edit_config(num_hidden_layers=3)),
    (NORM, edit_weights(lambda tensors: tensors.pop(NORM))),
    (NORM, edit_weights(lambda tensors: tensors.update({NORM: np.ones(31, np.float32)}))),
    (NORM, edit_weights(lambda tensors: tensors.update({NORM: np.ones(32, np.int32)}))),
]


@pytest.mark.parametrize(("field", "damage"), DAMAGES)
def test_broken_checkpoints(
    field: str, damage: Damage, model: pathlib.Path, tmp_path: pathlib.Path, llm: LLM
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    damage(broken)
    expect(
        field,
        lambda: LLM(str(broken), skip_tokenizer_init=True, max_model_len=64),
        CheckpointError,
    )


def test_a_missing_model_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        LLM(str(tmp_path / "nowhere"))
    (tmp_path / "not.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(CheckpointError, match=r"not\.gguf"):
        LLM(str(tmp_path / "not.gguf"))


def test_an_empty_batch_is_no_error(llm: LLM) -> None:
    assert llm.generate([], SamplingParams(), use_tqdm=False) == []
