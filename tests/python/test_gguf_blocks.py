"""GGUF's blocks as the engine holds them, against the gguf package's own dequantization."""

from __future__ import annotations

import json
import logging
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf_files import HIDDEN, llama_metadata, llama_tensors, write_gguf
from safetensors import safe_open

from forerun import _core
from forerun.checkpoints.convert import write_converted
from forerun.checkpoints.convert.reader import GgufFile
from forerun.checkpoints.inspection import inspect
from forerun.checkpoints.inspection.tensors import read_tensors
from forerun.errors import CheckpointError

KINDS = sorted(_core.block_types())
# What a float16 scale may hold: subnormal, zeros, infinities, NaN and numbers of either sign.
ODD_SCALES = np.array(
    [0, 0x8000, 1, 0x8001, 0x3FF, 0x83FF, 0x400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01],
    np.uint16,
)
# Where a block of each type has float16 numbers.
SCALE_OFFSETS = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(kind: str, rows: int, columns: int, odd: bool) -> npt.NDArray[np.uint8]:
    """Blocks of random bits; the scales are any numbers, or tame ones unless `odd`."""
    rng = np.random.default_rng(len(kind) + rows)
    block, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (rows * columns // block, num_bytes), dtype=np.uint8)
    for offset in SCALE_OFFSETS[kind]:
        scales = rng.integers(0, 1 << 16, len(blocks)).astype(np.uint16)
        if odd:
            chosen = rng.random(len(blocks)) < 0.5
            scales[chosen] = rng.choice(ODD_SCALES, chosen.sum())
        else:
            scales = (scales & 0x83FF) | 0x1000
        blocks[:, offset : offset + 2] = scales.astype("<u2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def dequantized(kind: str, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        values: npt.NDArray[np.float32] = gguf.dequantize(
            blocks, gguf.GGMLQuantizationType[kind]
        ).astype(np.float32)
    return values


def in_our_order(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of q or k in a Llama file have the halves of each head interleaved."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_model(path: Path, kind: str, odd: bool) -> dict[str, npt.NDArray[np.uint8]]:
    """A Llama all of whose matrices are of one type; returns the blocks."""
    tensors: dict[str, Any] = llama_tensors()
    blocks = {
        name: random_blocks(kind, *values.shape, odd)
        for name, values in tensors.items()
        if values.ndim == 2
    }
    types = dict.fromkeys(blocks, gguf.GGMLQuantizationType[kind])
    write_gguf(path, llama_metadata(), tensors | blocks, types)
    return blocks


def keep(path: Path, tmp_path: Path) -> Path:
    return write_converted(path, tmp_path / "kept", progress=False, keep_types=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_read_as_the_gguf_package_reads_it(kind: str, tmp_path: Path) -> None:
    blocks = write_model(tmp_path / "tiny.gguf", kind, odd=True)
    directory = keep(tmp_path / "tiny.gguf", tmp_path)
    layer = "model.layers.1."
    for stored, name, heads in [
        ("token_embd", "model.embed_tokens", None),
        ("blk.1.attn_q", f"{layer}self_attn.q_proj", 8),
        ("blk.1.attn_k", f"{layer}self_attn.k_proj", 4),
        ("blk.1.attn_v", f"{layer}self_attn.v_proj", None),
        ("blk.1.ffn_down", f"{layer}mlp.down_proj", None),
    ]:
        expected = dequantized(kind, blocks[f"{stored}.weight"])
        if heads is not None:
            expected = in_our_order(expected, heads)
        ours = _core.read_tensor(str(directory), f"{name}.weight")
        np.testing.assert_array_equal(ours, expected, strict=True)
        # -0 is a weight too; a NaN's sign is not.
        signs = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(ours)[signs], np.signbit(expected)[signs])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_blocks_has_the_logits_of_its_dequantized_weights(
    kind: str, tmp_path: Path
) -> None:
    # Activations that meet integers are quantized: the logits are close, not equal.
    write_model(tmp_path / "tiny.gguf", kind, odd=False)
    kept = _core.Model(str(keep(tmp_path / "tiny.gguf", tmp_path)))
    floats = write_converted(
        tmp_path / "tiny.gguf", tmp_path / "floats", progress=False, keep_types=False
    )
    reference = _core.Model(str(floats), dtype="float32")
    tokens = np.arange(3, 40, dtype=np.int32)
    ours, theirs = kept.logits(tokens), reference.logits(tokens)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99


def test_files_hold_the_blocks_and_say_of_what_type(tmp_path: Path) -> None:
    blocks = write_model(tmp_path / "tiny.gguf", "Q4_0", odd=False)
    directory = keep(tmp_path / "tiny.gguf", tmp_path)
    with safe_open(directory / "model.safetensors", "numpy") as file:
        stored = file.get_tensor("model.layers.0.mlp.up_proj.weight")
        np.testing.assert_array_equal(stored, blocks["blk.0.ffn_up.weight"], strict=True)
        assert file.metadata()["gguf:model.layers.0.mlp.up_proj.weight"] == "Q4_0"
        assert file.get_slice("model.norm.weight").get_dtype() == "F32"
    info = read_tensors(directory)["model.embed_tokens.weight"]
    assert (info.dtype, info.shape) == ("Q4_0", (268, HIDDEN))
    assert inspect(directory).num_parameters == inspect(tmp_path / "tiny.gguf").num_parameters


def test_floats_keep_their_type(tmp_path: Path) -> None:
    tensors: dict[str, Any] = llama_tensors()
    half = tensors["blk.0.ffn_up.weight"].astype(np.float16)
    write_gguf(tmp_path / "tiny.gguf", llama_metadata(), tensors | {"blk.0.ffn_up.weight": half})
    directory = str(keep(tmp_path / "tiny.gguf", tmp_path))
    for name, expected in [
        ("model.layers.0.mlp.up_proj.weight", half.astype(np.float32)),
        ("model.layers.0.mlp.down_proj.weight", tensors["blk.0.ffn_down.weight"]),
        ("model.layers.0.input_layernorm.weight", tensors["blk.0.attn_norm.weight"]),
    ]:
        np.testing.assert_array_equal(_core.read_tensor(directory, name), expected, strict=True)


def test_types_without_a_kernel_become_bfloat16_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors: dict[str, Any] = llama_tensors()
    kind = gguf.GGMLQuantizationType.Q2_K
    rng = np.random.default_rng(3)
    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    name = "blk.0.ffn_up.weight"
    rows, columns = tensors[name].shape
    # A byte of 0x2? as the upper half of a float16 scale keeps it small and finite.
    tensors[name] = rng.integers(0x20, 0x30, (rows, columns // block * num_bytes), dtype=np.uint8)
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), tensors, {name: kind})
    with caplog.at_level(logging.INFO, "forerun"):
        directory = keep(path, tmp_path)
    assert caplog.messages == [f"{path}: tensors of types without a kernel become bfloat16: 1 Q2_K"]
    import torch

    expected = torch.from_numpy(gguf.dequantize(tensors[name], kind)).to(torch.bfloat16).float()
    ours = _core.read_tensor(str(directory), "model.layers.0.mlp.up_proj.weight")
    np.testing.assert_array_equal(ours, expected.numpy())


def test_real_files_are_read_as_the_gguf_package_reads_them(
    smollm_gguf: Path, gemma_gguf: Path, tmp_path: Path
) -> None:
    for path, names in [
        (smollm_gguf, {"blk.29.ffn_down": "model.layers.29.mlp.down_proj"}),
        (
            gemma_gguf,
            {
                "blk.0.attn_q": "model.layers.0.self_attn.q_proj",
                "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
                "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
                "blk.17.ffn_down": "model.layers.17.mlp.down_proj",
                "blk.3.attn_output": "model.layers.3.self_attn.o_proj",
            },
        ),
    ]:
        directory = write_converted(path, tmp_path / path.stem, progress=False, keep_types=True)
        file = GgufFile(path)
        for stored, name in names.items():
            tensor = file.tensors[f"{stored}.weight"]
            assert tensor.type_name in KINDS
            ours = _core.read_tensor(str(directory), f"{name}.weight")
            np.testing.assert_array_equal(ours, dequantized(tensor.type_name, tensor.raw))


BAD_METADATA: dict[str, tuple[dict[str, str], tuple[int, ...], str]] = {
    "an unknown type": ({"gguf:a": "Q9_9"}, (4, 36), "Q9_9"),
    "no such tensor": ({"gguf:b": "Q4_0"}, (4, 36), "the name of a tensor"),
    "no name": ({"gguf:": "Q4_0"}, (4, 36), "the name of a tensor"),
    "half a block": ({"gguf:a": "Q8_0"}, (4, 36), "multiples of 34 bytes"),
    "no number": ({"gguf:a": "Q4_0"}, (), "U8 tensor with rows"),
    "a vector": ({"gguf:a": "Q4_0"}, (36,), "U8 tensor with rows"),
    "a cube": ({"gguf:a": "Q4_0"}, (2, 2, 36), "U8 tensor with rows"),
    "a long row of none": ({"gguf:a": "Q4_0"}, (0, 18 << 58), "U8 tensor with rows"),
}


def write_bytes(path: Path, metadata: dict[str, str], shape: tuple[int, ...]) -> None:
    """A file of one U8 tensor, "a"."""
    size = math.prod(shape)
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


@pytest.mark.parametrize("case", BAD_METADATA)
def test_metadata_that_contradicts_the_tensors_is_refused(case: str, tmp_path: Path) -> None:
    metadata, shape, message = BAD_METADATA[case]
    write_bytes(tmp_path / "model.safetensors", metadata, shape)
    for read in (lambda: _core.read_tensor(str(tmp_path), "a"), lambda: read_tensors(tmp_path)):
        with pytest.raises(CheckpointError) as error:
            read()
        assert message in str(error.value)
        assert "model.safetensors: __metadata__: " in error.value.field


@pytest.mark.parametrize("shape", [(0, 18), (4, 0)])
def test_blocks_of_no_weights_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_bytes(tmp_path / "model.safetensors", {"gguf:a": "Q4_0"}, shape)
    with pytest.raises(CheckpointError, match="extents of 1 to 2147483647"):
        _core.read_tensor(str(tmp_path), "a")


_PEAK = """
import sys
from forerun import _core

model = _core.Model(sys.argv[1], num_threads=1, max_model_len=64)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(1024 * int(status[name].split()[0]) for name in ("VmHWM", "VmRSS")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_needs_one_tensor_beside_the_packed_weights(
    smollm_gguf: Path, tmp_path: Path
) -> None:
    directory = write_converted(smollm_gguf, tmp_path / "kept", progress=False, keep_types=True)
    run = [sys.executable, "-c", _PEAK, str(directory)]
    output = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    peak, after = map(int, output.split())
    embedding = GgufFile(smollm_gguf).tensors["token_embd.weight"]
    # Its blocks and integers, four bytes of scales for each 32 of them, and what allocators keep.
    largest = embedding.raw.nbytes + embedding.shape[0] * embedding.shape[1] * (1 + 4 / 32)
    assert peak - after < largest + (8 << 20)
