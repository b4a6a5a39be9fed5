"""Bad input gives the right exception with the field and what is valid; the engine serves on."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import bad_input
import numpy as np
import pytest

import forerun
from forerun import LLM, CheckpointError, InvalidArgumentError, SamplingParams
from forerun.speculative_config import make_speculative_config

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


@pytest.fixture(scope="module")
def text_llm(tiny_dir: pathlib.Path) -> LLM:
    return LLM(tiny_dir, max_model_len=512, max_num_seqs=4)


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


def check(error: InvalidArgumentError, field: str, expected: str) -> None:
    assert error.field == field
    assert expected in error.expected
    assert error.field in str(error)
    assert error.expected in str(error)
    assert isinstance(error, ValueError)
    assert isinstance(error, forerun.ForerunError)


@pytest.mark.parametrize(("params", "field", "expected"), bad_input.SAMPLING)
def test_wrong_sampling_parameters_are_refused_at_construction(
    params: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        SamplingParams(**params)
    check(error.value, field, expected)


@pytest.mark.parametrize(("config", "field", "expected"), bad_input.SPECULATIVE)
def test_wrong_speculation_is_refused_at_construction(
    config: Any, field: str, expected: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        make_speculative_config(config)
    check(error.value, field, expected)
    with pytest.raises(InvalidArgumentError, match=field):
        LLM(tmp_path / "never-looked-at", speculative_config=config)


@pytest.mark.parametrize(("options", "field", "expected"), bad_input.ENGINE)
def test_wrong_options_are_refused_before_the_model_is_searched(
    options: dict[str, Any], field: str, expected: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        LLM(tmp_path / "never-looked-at", **options)
    check(error.value, field, expected)


@pytest.mark.parametrize(
    ("field", "value"), [("max_model_len", 100_000), ("kv_cache_memory_bytes", 10)]
)
def test_options_that_do_not_suit_the_model_are_refused(
    field: str, value: int, model: pathlib.Path
) -> None:
    expect(field, lambda: LLM(str(model), skip_tokenizer_init=True, **{field: value}))


@pytest.mark.parametrize(("prompts", "params", "field", "expected"), bad_input.REQUESTS)
def test_a_bad_request_is_refused_and_its_batch_does_not_run(
    text_llm: LLM, prompts: Any, params: Any, field: str, expected: str
) -> None:
    before = text_llm.metrics().num_generated_tokens
    for call in (
        lambda: text_llm.generate(prompts, params, use_tqdm=False),
        lambda: text_llm.stream(prompts, params),
    ):
        with pytest.raises(InvalidArgumentError) as error:
            call()
        check(error.value, field, expected)
    text_llm.reset_caches()
    assert text_llm.metrics().num_generated_tokens == before


def test_unknown_names_suggest_the_nearest(model: pathlib.Path) -> None:
    with pytest.raises(InvalidArgumentError, match="max_num_seqs"):
        LLM(str(model), skip_tokenizer_init=True, max_num_seq=4)
    with pytest.raises(InvalidArgumentError, match="temperature"):
        SamplingParams(temprature=0.5)


def test_a_bad_prompt_among_good_ones_is_named_and_none_runs(llm: LLM) -> None:
    before = llm.metrics().num_generated_tokens
    expect("prompts[1]", lambda: llm.generate([[1], [999], [2]], use_tqdm=False))
    assert llm.metrics().num_generated_tokens == before


def test_options_that_need_a_tokenizer_or_sampling_are_refused_without(llm: LLM) -> None:
    expect("skip_tokenizer_init", lambda: llm.generate("text", use_tqdm=False))
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
