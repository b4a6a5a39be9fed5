"""Which tokens end a text: those of config.json, generation_config.json and the tokenizer."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from forerun import LLM, SamplingParams


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def model(tiny_dir: Path, tmp_path: Path) -> Path:
    """The tiny model, whose two special tokens are 266 and 267."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_dir, directory)
    change_json(directory / "config.json", eos_token_id=None)
    change_json(directory / "generation_config.json", eos_token_id=None)
    return directory


def write(llm: LLM, ids: list[int], **options: Any) -> list[int]:
    """What comes of ids that the model is made to write."""

    def force(output: list[int], logits: Any) -> Any:
        bias = logits * 0 - 100.0
        bias[ids[min(len(output), len(ids) - 1)]] = 100.0
        bias[ids[-1]] += 1.0  # where the wanted one is ruled out
        return bias + (logits > -1e30) * 0 + (logits < -1e30) * logits

    params = SamplingParams(
        temperature=0, max_tokens=len(ids), logits_processors=[force], **options
    )
    completion = llm.generate("x", params, use_tqdm=False)[0].outputs[0]
    return list(completion.token_ids)


def test_the_tokenizers_end_ends_a_text(model: Path) -> None:
    llm = LLM(model, max_model_len=64)
    assert llm.get_tokenizer().eos_token_id == 267
    assert llm.limits.eos_token_ids == [267]
    assert write(llm, [5, 267, 6, 7]) == [5, 267]
    assert write(llm, [5, 267, 6, 7], ignore_eos=True) == [5, 267, 6, 7]
    params = SamplingParams(temperature=0, max_tokens=20, structured_outputs={"regex": "ab"})
    output = llm.generate("x", params, use_tqdm=False)[0].outputs[0]
    assert (output.text, output.token_ids[-1], output.finish_reason) == ("ab", 267, "stop")


def test_ends_of_all_files_are_joined(model: Path) -> None:
    change_json(model / "config.json", eos_token_id=10)
    change_json(model / "generation_config.json", eos_token_id=[11, 10])
    llm = LLM(model, max_model_len=64)
    assert sorted(llm.limits.eos_token_ids) == [10, 11, 267]
    for end in (10, 11, 267):
        assert write(llm, [5, end, 6]) == [5, end]
        assert end not in write(llm, [end, end, 5, 6], min_tokens=3)[:3]


def test_the_special_tokens_map_counts(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    assert LLM(model, max_model_len=64).limits.eos_token_ids == [266]


def test_an_eos_token_beyond_the_vocabulary_is_logged_and_ignored(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_json(model / "tokenizer_config.json", eos_token="<|new|>")
    with caplog.at_level(logging.WARNING, logger="forerun"):
        llm = LLM(model, max_model_len=64)
    assert llm.limits.eos_token_ids == []
    assert "'<|new|>' has the id 268" in caplog.text
    assert write(llm, [5, 6]) == [5, 6]


def test_a_model_without_a_tokenizer_has_the_ends_of_its_configs(model: Path) -> None:
    change_json(model / "config.json", eos_token_id=10)
    llm = LLM(model, skip_tokenizer_init=True, max_model_len=64)
    assert llm.limits.eos_token_ids == [10]
