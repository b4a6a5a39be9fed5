"""Packed weights that are kept for the next start: the same tokens, also of damaged files."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forerun import LLM, InvalidArgumentError, SamplingParams
from forerun.checkpoints import model_cache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORERUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORERUN_PACKED_CACHE_GB")
    model_cache.warn_of_weight_cache.cache_clear()
    return tmp_path / "cache" / "packed"


def load(model: Path, **options: Any) -> tuple[str, list[int]]:
    """What became of the cache, and what the model says."""
    llm = LLM(model, max_model_len=64, **options)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    output = llm.generate("the quick", params, use_tqdm=False)[0].outputs[0]
    return llm.limits.weight_cache, list(output.token_ids)


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_the_second_start_says_what_the_first_said(
    tiny_dir: Path, cache: Path, quantization: str | None
) -> None:
    first = load(tiny_dir, quantization=quantization)
    assert first[0] == "written"
    assert load(tiny_dir, quantization=quantization) == ("read", first[1])
    assert len(list(cache.iterdir())) == 1


def test_each_format_and_each_checkpoint_has_a_file_of_its_own(
    tiny_dir: Path, tmp_path: Path, cache: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    assert load(model)[0] == load(model, quantization="int8")[0] == "written"
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert load(model)[0] == "written"
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("value", ["0", "0.0"])
def test_nothing_is_kept_where_the_variable_is_0(
    tiny_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FORERUN_PACKED_CACHE_GB", value)
    assert load(tiny_dir)[0] == "off"
    assert not cache.exists()


@pytest.mark.parametrize("value", ["-1", "much", "nan", "inf", "1e30"])
def test_a_size_that_is_none_is_refused(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FORERUN_PACKED_CACHE_GB", value)
    with pytest.raises(InvalidArgumentError, match=f"FORERUN_PACKED_CACHE_GB.*{value}.*gigabytes"):
        LLM(tiny_dir)


def test_the_least_recently_used_makes_room(
    tiny_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny_dir)
    load(tiny_dir, quantization="int8")
    oldest, other = sorted(cache.iterdir(), key=lambda path: path.stat().st_size, reverse=True)
    os.utime(other, ns=(1, 1))
    os.utime(oldest, ns=(2, 2))
    assert load(tiny_dir, quantization="int8")[0] == "read"  # so that it is the newest
    size = sum(path.stat().st_size for path in cache.iterdir())
    monkeypatch.setenv("FORERUN_PACKED_CACHE_GB", str(size / 1e9))
    assert load(tiny_dir, quantization="int4")[0] == "written"
    assert not oldest.exists()
    assert other.exists()
    monkeypatch.setenv("FORERUN_PACKED_CACHE_GB", "1e-9")
    assert load(tiny_dir, quantization="int4")[0] == "read"
    assert load(tiny_dir)[0].startswith("not written: ")


def test_a_cache_that_cannot_be_written_is_logged_once(
    tiny_dir: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text("not a directory")
    with caplog.at_level(logging.WARNING, logger="forerun"):
        first = load(tiny_dir)
        assert load(tiny_dir) == first
    assert first[0].startswith("not written: ")
    assert caplog.text.count("packed weights for the next start were not written") == 1


def test_a_damaged_file_is_made_again(tiny_dir: Path, cache: Path) -> None:
    first = load(tiny_dir, quantization="int8")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:1000] + b"x" + whole[1001:], whole + b"x"):
        path.write_bytes(damaged)
        assert load(tiny_dir, quantization="int8") == first
        assert path.read_bytes() == whole


def test_processes_that_start_together_all_start(tiny_dir: Path, cache: Path) -> None:
    script = f"""
from forerun import LLM, SamplingParams
llm = LLM({str(tiny_dir)!r}, max_model_len=64, quantization="int8")
params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
print(list(llm.generate("the quick", params, use_tqdm=False)[0].outputs[0].token_ids))
"""
    command = [sys.executable, "-c", script]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=120)[0] for process in started}
    assert outputs == {f"{load(tiny_dir, quantization='int8')[1]}\n"}
    assert len(list(cache.iterdir())) == 1
