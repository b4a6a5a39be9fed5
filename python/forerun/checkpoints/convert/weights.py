"""GGUF tensors -> safetensors, one tensor at a time, so memory stays small."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forerun import _core
from forerun.checkpoints.convert.reader import GgufFile, GgufTensor
from forerun.errors import CheckpointError

_BLOCK_TYPES = _core.block_types()
_LOGGER = logging.getLogger("forerun")
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # types of GGUF and of safetensors, and their bytes
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_LAYER = _LAYER | {"ffn_norm": "post_attention_layernorm"}
_GEMMA3_LAYER = _LAYER | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FREQS = "rope_freqs.weight"
_CHUNK_ELEMENTS = 1 << 22


def rope_freqs(file: GgufFile) -> npt.NDArray[np.float32] | None:
    """The divisors of the rotary frequencies that Llama 3 files carry as a tensor."""
    tensor = file.tensors.get(_ROPE_FREQS)
    return None if tensor is None else next(_dequantize(tensor, tensor.raw)).reshape(-1)


def write_weights(
    file: GgufFile, config: dict[str, Any], path: Path, progress: bool, keep_types: bool
) -> None:
    """Writes `model.safetensors`, undoing what GGUF converters do to the tensors.

    Args:
        keep_types: matrices stay as the file stores them where the engine has a kernel for their
            type, blocks as bytes whose type the metadata names, and vectors are float32. Otherwise
            all tensors are bf16.
    """
    from tqdm import tqdm

    names = _hugging_face_names(file, config)
    types = {name: _stored_type(tensor, keep_types) for name, tensor in names.items()}
    if keep_types:
        _report_conversions(file, names, types)
    text, total = _header(names, types)
    bar = tqdm(
        total=total, unit="B", unit_scale=True, desc="Converting weights", disable=not progress
    )
    with path.open("wb") as out, bar:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in names.items():
            for chunk in _stored_bytes(tensor, types[name], name, config):
                out.write(chunk)
                bar.update(len(chunk))


def _stored_type(tensor: GgufTensor, keep_types: bool) -> str:
    """A type of safetensors, or of GGUF's blocks."""
    if not keep_types:
        return "BF16"
    if len(tensor.shape) == 1:
        return "F32"
    is_kept = tensor.type_name in _FLOATS or tensor.type_name in _BLOCK_TYPES
    return tensor.type_name if is_kept else "BF16"


def _report_conversions(
    file: GgufFile, names: dict[str, GgufTensor], types: dict[str, str]
) -> None:
    converted = Counter(
        names[name].type_name
        for name, type_ in types.items()
        if type_ == "BF16" and names[name].type_name != "BF16"
    )
    if converted:
        counts = ", ".join(f"{count} {type_}" for type_, count in converted.most_common())
        _LOGGER.info("%s: tensors of types without a kernel become bfloat16: %s", file.path, counts)


def _header(names: dict[str, GgufTensor], types: dict[str, str]) -> tuple[bytes, int]:
    """The header of the safetensors file, padded, and how many bytes of tensors follow it."""
    metadata = {"format": "pt"}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in names.items():
        type_, shape = types[name], tensor.shape
        if type_ in _BLOCK_TYPES:
            metadata[f"gguf:{name}"] = type_
            type_, shape = "U8", tensor.raw.shape
        begin, end = end, end + math.prod(shape) * _FLOATS.get(type_, 1)
        header[name] = {"dtype": type_, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), end


def _stored_bytes(
    tensor: GgufTensor, type_: str, name: str, config: dict[str, Any]
) -> Iterator[bytes]:
    raw = _in_our_row_order(tensor, name, config)
    has_offset = config["model_type"] == "gemma3_text" and name.endswith("norm.weight")
    if type_ == tensor.type_name and not has_offset:
        yield raw.tobytes()
        return
    for chunk in _dequantize(tensor, raw):
        if has_offset:
            chunk = chunk - np.float32(1)
        if type_ == "BF16":
            yield round_to_bf16(chunk).astype("<u2", copy=False).tobytes()
        else:
            yield chunk.astype("<f4", copy=False).tobytes()


def round_to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bf16 values, ties to even; a NaN stays a quiet NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    quiet_nan = (bits >> 16) | np.uint32(0x40)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    result: npt.NDArray[np.uint16] = np.where(is_nan, quiet_nan, rounded).astype(np.uint16)
    return result


def _hugging_face_names(file: GgufFile, config: dict[str, Any]) -> dict[str, GgufTensor]:
    """Hugging Face name -> stored tensor; CheckpointError when one is missing or unknown."""
    layer = _LLAMA_LAYER if config["model_type"] == "llama" else _GEMMA3_LAYER
    names: dict[str, GgufTensor] = {}
    for stored, tensor in file.tensors.items():
        if stored == _ROPE_FREQS:
            continue
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", stored)
        known = match and (_TOP if match[1] is None else layer).get(match[2])
        if not match or not known:
            raise CheckpointError(
                f"{file.path}: {stored}", f"shape {tensor.shape}", "no tensor of that name"
            )
        prefix = "" if match[1] is None else f"model.layers.{match[1]}."
        names[f"{prefix}{known}.{match[3]}"] = tensor
    expected = set(_expected_names(layer, config))
    for name in sorted(expected ^ names.keys()):
        given = "nothing" if name in expected else "a tensor"
        wanted = "a tensor of that name" if name in expected else "none beside the others"
        raise CheckpointError(f"{file.path}: {name}", given, wanted)
    return names


def _expected_names(layer: dict[str, str], config: dict[str, Any]) -> Iterator[str]:
    for stored, name in _TOP.items():
        if stored != "output" or not config["tie_word_embeddings"]:
            yield f"{name}.weight"
    for index in range(config["num_hidden_layers"]):
        for name in layer.values():
            yield f"model.layers.{index}.{name}.weight"
            group = name.split(".")[0]
            if (group == "self_attn" and config.get("attention_bias")) or (
                group == "mlp" and config.get("mlp_bias")
            ):
                yield f"model.layers.{index}.{name}.bias"


def _in_our_row_order(
    tensor: GgufTensor, name: str, config: dict[str, Any]
) -> npt.NDArray[np.uint8]:
    """Stored rows of q and k in Llama files interleave the halves of each head; undo it.

    Rows are permuted before they are dequantized: blocks never cross a row.
    """
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    projection = name.split(".")[-2]
    if config["model_type"] != "llama" or projection not in heads:
        return tensor.raw
    num_heads = config[heads[projection]]
    if tensor.shape[0] != num_heads * config["head_dim"]:
        raise CheckpointError(
            f"{tensor.name}: shape", tensor.shape, f"{num_heads} heads of {config['head_dim']} rows"
        )
    # A bias is one row of values: permute the values themselves, which are 4 or 2 bytes each.
    raw = tensor.raw
    if name.endswith(".bias"):
        raw = raw.reshape(tensor.shape[0], -1)
    order = np.arange(tensor.shape[0]).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)
    permuted: npt.NDArray[np.uint8] = raw[order].reshape(tensor.raw.shape)
    return permuted


def _dequantize(
    tensor: GgufTensor, raw: npt.NDArray[np.uint8]
) -> Iterator[npt.NDArray[np.float32]]:
    from gguf import GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(tensor.type_id)
    rows_at_once = max(1, _CHUNK_ELEMENTS // tensor.shape[-1])
    for begin in range(0, len(raw), rows_at_once):
        rows = np.ascontiguousarray(raw[begin : begin + rows_at_once])
        try:
            with np.errstate(all="ignore"):  # damaged scales give infinities
                values = dequantize(rows, kind).astype(np.float32, copy=False)
        except NotImplementedError:
            raise CheckpointError(
                f"{tensor.name}: type", tensor.type_name, "a type that the gguf package unpacks"
            ) from None
        yield values
