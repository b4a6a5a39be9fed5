"""Every family and what its config can say: logits against transformers in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import (
    VARIATIONS,
    Variation,
    reference_logits,
    write_checkpoint,
    write_gemma3_with_vision,
)
from transformers import Gemma3ForConditionalGeneration

from forerun import _core
from forerun.errors import CheckpointError, InvalidArgumentError

NUM_TOKENS = 90  # beyond every small sliding window, and several KV blocks


def random_tokens(count: int, vocab_size: int = 131, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, count, dtype=np.int32)


def largest_error(logits: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, in units of the reference's spread."""
    return float(np.abs(logits - reference).max() / reference.std())


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(VARIATIONS[0], tmp_path_factory.mktemp("llama"))


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config.update(fields)
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "drop"}))


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda variation: variation.name)
def test_logits_are_those_of_transformers(variation: Variation, tmp_path: Path) -> None:
    write_checkpoint(variation, tmp_path)
    tokens = random_tokens(NUM_TOKENS)
    reference = reference_logits(tmp_path, tokens)

    exact = _core.Model(str(tmp_path), dtype="float32", num_threads=2)
    logits = exact.logits(tokens)
    assert logits.shape == (NUM_TOKENS, exact.vocab_size)
    assert largest_error(logits, reference) < 3e-5
    assert np.array_equal(exact.logits(tokens, chunks=[1, 33, 16, 40]), logits)

    rounded = _core.Model(str(tmp_path), dtype="bfloat16", num_threads=1)
    logits = rounded.logits(tokens)
    assert largest_error(logits, reference) < 0.2
    assert np.array_equal(rounded.logits(tokens, chunks=[40, 1, 1, 48]), logits)


def test_the_automatic_dtype_is_the_checkpoints(tmp_path: Path) -> None:
    for name, dtype in [("smollm", "bfloat16"), ("llama_float16", "float32"), ("llama", "float32")]:
        variation = next(each for each in VARIATIONS if each.name == name)
        directory = write_checkpoint(variation, tmp_path / name)
        assert _core.Model(str(directory)).dtype == dtype


def test_gemma3_is_read_in_its_older_writing_too(tmp_path: Path) -> None:
    variation = next(each for each in VARIATIONS if each.name == "gemma3_linear")
    write_checkpoint(variation, tmp_path)
    tokens = random_tokens(NUM_TOKENS)
    reference = reference_logits(tmp_path, tokens)
    before = _core.Model(str(tmp_path)).logits(tokens)
    edit_config(
        tmp_path,
        rope_parameters="drop",
        layer_types="drop",
        dtype="drop",
        torch_dtype="float32",
        rope_theta=50000.0,
        rope_local_base_freq=1000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=6,
    )
    assert np.array_equal(_core.Model(str(tmp_path)).logits(tokens), before)
    assert largest_error(before, reference) < 3e-5


def test_the_text_model_of_gemma3_with_vision_is_gemma3(tmp_path: Path) -> None:
    write_gemma3_with_vision(tmp_path)
    tokens = random_tokens(NUM_TOKENS)
    reference = reference_logits(tmp_path, tokens, Gemma3ForConditionalGeneration)
    logits = _core.Model(str(tmp_path), dtype="float32").logits(tokens)
    assert largest_error(logits, reference) < 3e-5


def test_every_instruction_set_computes_the_same_model(llama_dir: Path) -> None:
    tokens = random_tokens(NUM_TOKENS)
    reference = reference_logits(llama_dir, tokens)
    for isa in _core.available_isas():
        model = _core.Model(str(llama_dir), dtype="float32", isa=isa)
        assert model.isa == isa
        assert largest_error(model.logits(tokens), reference) < 3e-5


def test_threads_do_not_change_a_bit(llama_dir: Path) -> None:
    tokens = random_tokens(NUM_TOKENS)
    logits = [_core.Model(str(llama_dir), num_threads=n).logits(tokens) for n in (1, 2, 3)]
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[0], logits[2])


@pytest.mark.parametrize(
    ("tokens", "chunks", "field"),
    [
        (np.zeros(0, np.int32), None, "token_ids"),
        (np.zeros(600, np.int32), None, "token_ids"),
        (np.array([1, 131], np.int32), None, "token_ids"),
        (np.array([-1], np.int32), None, "token_ids"),
        (np.zeros((2, 2), np.int32), None, "token_ids"),
        (np.zeros(4, np.int32), [2, 3], "chunks"),
        (np.zeros(4, np.int32), [5, -1], "chunks"),
    ],
)
def test_tokens_that_cannot_be_scored_are_refused(
    llama_dir: Path, tokens: np.ndarray, chunks: list[int] | None, field: str
) -> None:
    model = _core.Model(str(llama_dir))
    with pytest.raises(InvalidArgumentError) as error:
        model.logits(tokens, chunks=chunks)
    assert error.value.field == field
    assert model.logits(random_tokens(3)).shape == (3, 131)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"num_threads": -1}, "num_threads"),
        ({"isa": "sse9"}, "isa"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_model_len": 513}, "max_model_len"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    llama_dir: Path, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        _core.Model(str(llama_dir), **options)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model_type": "mixtral"}, "model_type"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_size": 41}, "tensor"),
        ({"num_hidden_layers": 2}, "tensor"),
        ({"num_hidden_layers": 4}, "tensor"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"attention_bias": True}, "tensor"),
    ],
)
def test_checkpoints_that_contradict_themselves_are_refused(
    llama_dir: Path, tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((llama_dir / name).read_bytes())
    edit_config(tmp_path, **fields)
    with pytest.raises(CheckpointError) as error:
        _core.Model(str(tmp_path))
    assert field in error.value.field
