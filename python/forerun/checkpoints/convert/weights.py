"""GGUF tensors -> bf16 safetensors, one tensor at a time, so memory stays small."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forerun.checkpoints.convert.reader import GgufFile, GgufTensor
from forerun.errors import CheckpointError

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


def write_weights(file: GgufFile, config: dict[str, Any], path: Path, progress: bool) -> None:
    """Writes `model.safetensors` in bf16, undoing what GGUF converters do to the tensors."""
    from tqdm import tqdm

    names = _hugging_face_names(file, config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in names.items():
        begin, end = end, end + 2 * int(np.prod(tensor.shape))
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    bar = tqdm(
        total=end, unit="B", unit_scale=True, desc="Converting weights", disable=not progress
    )
    with path.open("wb") as out, bar:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in names.items():
            for chunk in _dequantize(tensor, _in_our_row_order(tensor, name, config)):
                if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
                    chunk = chunk - np.float32(1)
                bits = round_to_bf16(chunk)
                out.write(bits.astype("<u2", copy=False).tobytes())
                bar.update(bits.nbytes)


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
