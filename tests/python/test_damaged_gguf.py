"""GGUF files with values that no writer writes: one error that names the file and the key."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import llama_metadata, llama_tensors, write_gguf

from forerun import LLM, CheckpointError
from forerun.checkpoints.convert import convert
from forerun.checkpoints.inspection import inspect
from forerun.errors import InvalidArgumentError
from forerun.tools import cli

TYPES = gguf.GGUFValueType


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    return llama_tensors()


def refused(path: Path) -> CheckpointError:
    """The error that all readers of the file end with."""
    with pytest.raises(CheckpointError) as error:
        convert(path, path.parent / "out", progress=False)
    assert not (path.parent / "out").exists()
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 1000
    return error.value


WRONG: list[tuple[str, Any]] = [
    ("general__alignment", 0),
    ("general__alignment", "32"),
    ("general__alignment", [32]),
    ("general__alignment", 2**32 - 1),
    ("split__count", "two"),
    ("llama__block_count", 2**32 - 1),
    ("llama__block_count", 3),
    ("llama__block_count", 0),
    ("llama__block_count", True),
    ("llama__block_count", 2.0),
    ("llama__block_count", [2, 2]),
    ("llama__embedding_length", "256"),
    ("llama__context_length", 2**32 - 1),
    ("llama__attention__head_count", 0),
    ("llama__attention__head_count", [8, 8]),
    ("llama__attention__head_count", 2**31 - 1),
    ("llama__attention__key_length", 31),
    ("llama__attention__key_length", "x"),
    ("llama__attention__layer_norm_rms_epsilon", float("nan")),
    ("llama__attention__layer_norm_rms_epsilon", 1),
    ("llama__attention__layer_norm_rms_epsilon", 0.0),
    ("llama__rope__freq_base", "x"),
    ("llama__rope__freq_base", -1.0),
    ("llama__rope__freq_base", float("inf")),
    ("llama__rope__scaling__type", [1]),
    ("llama__rope__scaling__factor", "x"),
    ("tokenizer__ggml__model", [1]),
    ("tokenizer__ggml__model", 3),
    ("tokenizer__ggml__pre", ["llama-bpe"]),
    ("tokenizer__ggml__pre", 1),
    ("tokenizer__ggml__tokens", "abc"),
    ("tokenizer__ggml__tokens", [1, 2, 3]),
    ("tokenizer__ggml__tokens", ["x" * 100_000, "y"]),
    ("tokenizer__ggml__merges", [1, 2]),
    ("tokenizer__ggml__merges", ["x"]),
    ("tokenizer__ggml__merges", "a b"),
    ("tokenizer__ggml__token_type", ["a"]),
    ("tokenizer__ggml__bos_token_id", 2**32 - 1),
    ("tokenizer__ggml__bos_token_id", 268),
    ("tokenizer__ggml__eos_token_id", "1"),
    ("tokenizer__ggml__eos_token_id", [1]),
    ("tokenizer__ggml__add_bos_token", "yes"),
    ("tokenizer__chat_template", 1),
    ("general__sampling__temp", "hot"),
    ("general__sampling__top_k", [1]),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_values_of_wrong_types_and_sizes_are_named(
    key: str, value: Any, tensors: dict[str, Any], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(**{key: value}), tensors)
    if key == "llama__attention__layer_norm_rms_epsilon" and value == 1:
        # A whole number is a number; the file is refused for nothing else.
        convert(path, tmp_path / "out", progress=False)
        return
    error = refused(path)
    name = key.replace("__", ".").removeprefix("llama.")
    assert error.field.startswith(str(path))
    is_heads = value in (2**31 - 1, 3) and "block" not in key
    assert name in error.field or is_heads or "merges" in key or "freq" in key


@pytest.mark.parametrize("pattern", [0, -1, "x", [True], ["a", "b"], [1, 0]])
def test_the_pattern_of_windows_is_checked(pattern: Any, tmp_path: Path) -> None:
    metadata = {
        key.replace("llama.", "gemma3."): value
        for key, value in llama_metadata(llama__attention__sliding_window=8).items()
    }
    metadata["gemma3.attention.sliding_window_pattern"] = pattern
    if pattern == -1:
        metadata["gemma3.attention.sliding_window_pattern"] = 2**32 - 1
    path = write_gguf(tmp_path / "tiny.gguf", metadata, llama_tensors(), arch="gemma3")
    assert "sliding_window_pattern" in refused(path).field


def packed(kind: int, value: bytes, key: str = "a") -> bytes:
    """A file with one key of one type and no tensors."""
    name = key.encode()
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    return head + struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    """A file with one tensor, whose data is 64 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t"
    head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + b"\0" * (-len(head) % 32 + 64)


RAW = {
    "arrays in arrays": packed(9, struct.pack("<IQ", 9, 1) * 2000),
    "a huge array": packed(9, struct.pack("<IQ", 4, 2**62)),
    "a huge array of texts": packed(9, struct.pack("<IQ", 8, 2**62)),
    "a huge text": packed(8, struct.pack("<Q", 2**63)),
    "an unknown type": packed(13, b""),
    "an array of an unknown type": packed(9, struct.pack("<IQ", 99, 3)),
    "no keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "a great many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
    "a great many keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
    "no dimensions": tensor([]),
    "five dimensions": tensor([1] * 5),
    "a great many dimensions": b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 0) + b"\xff" * 4,
    "a size of zero": tensor([0, 4]),
    "a huge size": tensor([2**62, 2**62]),
    "a huge offset": tensor([4], offset=2**63),
    "an unknown type of tensor": tensor([4], kind=4000),
    "a part of a block": tensor([4], kind=2),
    "another version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "another byte order": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "empty": b"",
    "short": b"GG",
    "no GGUF": b"PK\x03\x04" * 20,
}


@pytest.mark.parametrize("case", RAW)
def test_damaged_headers_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "raw.gguf"
    path.write_bytes(RAW[case])
    refused(path)
    with pytest.raises(CheckpointError):
        inspect(path)
    with pytest.raises(CheckpointError):
        LLM(path)


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "directory.gguf").mkdir()
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    for name in ("directory", "loop", "zero", "missing"):
        with pytest.raises(CheckpointError):
            convert(tmp_path / f"{name}.gguf", tmp_path / "out", progress=False)
        with pytest.raises(CheckpointError):
            inspect(tmp_path / f"{name}.gguf")


def test_a_directory_that_cannot_be_made_is_named(tensors: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), tensors)
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "out", tmp_path / ("a" * 300)):
        with pytest.raises(InvalidArgumentError) as error:
            convert(path, target, progress=False)
        assert error.value.field == "directory"


def test_divisors_that_are_none_are_refused(tensors: dict[str, Any], tmp_path: Path) -> None:
    for values in ([0.0] * 16, [float("nan")] * 16, [-1.0] * 16, [float("inf")] * 16):
        freqs = {"rope_freqs.weight": np.array(values, np.float32)}
        path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), tensors | freqs)
        assert "rope_freqs.weight" in refused(path).field


def test_a_gguf_file_is_inspected(
    tensors: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), tensors)
    found = inspect(path)
    assert (found.method, found.hidden_size, found.vocab_size) == ("target", 256, 268)
    assert found.num_parameters == sum(values.size for values in tensors.values())
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "a language model (GGUF of architecture llama)" in shown
    assert "layers: 2" in shown
    assert f"tensors by type: {len(tensors)} F32" in shown
    made = convert(path, tmp_path / "out", progress=False)
    assert cli.main(["inspect", str(path), "--target", str(made)]) == 0
    assert cli.main(["inspect", str(path), "--method", "eagle"]) != 0
    assert cli.main(["inspect", str(tmp_path / "mistyped")]) != 0
    assert "no such directory" in capsys.readouterr().err
