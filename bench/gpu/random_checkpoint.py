"""A Llama with random weights: speed does not depend on what a model knows.

All layers have the same bytes, so that writing a model of 8 billion weights takes as long as the
disk does.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Config = dict[str, Any]

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SHAPES: dict[str, Config] = {
    "Llama-3.1-8B": {
        **LLAMA,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 16384,
    },
    "tiny": {
        **LLAMA,
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
    },
}


def layer_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Of one layer's tensors; matrices are [outputs, inputs]."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv_heads = config["num_key_value_heads"] * config["head_dim"]
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (heads, hidden),
        "self_attn.k_proj.weight": (kv_heads, hidden),
        "self_attn.v_proj.weight": (kv_heads, hidden),
        "self_attn.o_proj.weight": (hidden, heads),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def num_layer_weights(config: Config) -> int:
    """Weights of the matrices of all layers."""
    shapes = [shape for shape in layer_shapes(config).values() if len(shape) == 2]
    return int(config["num_hidden_layers"]) * sum(math.prod(shape) for shape in shapes)


def bfloat16_tensor(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Bits of norms of 1, or of a matrix that keeps the size of what it is multiplied with."""
    if len(shape) == 1:
        return np.full(shape, 0x3F80, np.uint16)
    # Random signs and mantissas, one exponent: magnitudes from 2^e to 2^(e+1), 1.53 * 2^e on
    # average over squares.
    exponent = 127 + round(-math.log2(1.53 * math.sqrt(shape[1])))
    bits = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16)
    return ((bits & 0x807F) | (exponent << 7)).astype(np.uint16).reshape(shape)


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file of bfloat16."""
    header, end = {}, 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {
            "dtype": "BF16",
            "shape": list(values.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(memoryview(values.reshape(-1)))


def write_random_checkpoint(config: Config, directory: Path) -> Path:
    """Writes it, unless it is there already."""
    text = json.dumps(config, indent=1)
    done = directory / "config.json"
    if done.exists() and done.read_text(encoding="utf-8") == text:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    layer = {name: bfloat16_tensor(shape, rng) for name, shape in layer_shapes(config).items()}
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    ends = {
        "model.embed_tokens.weight": bfloat16_tensor((vocab, hidden), rng),
        "model.norm.weight": bfloat16_tensor((hidden,), rng),
        "lm_head.weight": bfloat16_tensor((vocab, hidden), rng),
    }
    num_layers = config["num_hidden_layers"]
    files = [
        {f"model.layers.{i}.{name}": values for name, values in layer.items()}
        for i in range(num_layers)
    ] + [ends]
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_file, [directory / name for name in names], files))
    weight_map = {tensor: name for name, file in zip(names, files, strict=True) for tensor in file}
    num_bytes = sum(values.nbytes for file in files for values in file.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    done.write_text(text, encoding="utf-8")  # last: it says that the rest is there
    return directory
