"""Writes small random model directories with numpy: for smoke, install and property tests."""

import json
import pathlib
import sys
from typing import Any

import numpy as np
from safetensors.numpy import save_file

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-5},
    "qwen3": {"rms_norm_eps": 1e-6},
    "gemma3_text": {
        "rms_norm_eps": 1e-6,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 100000.0,
        "rope_local_base_freq": 10000.0,
    },
}
SHARED_CONFIG = {
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def write_tiny_model(
    directory: pathlib.Path,
    family: str = "llama",
    vocab_size: int = 64,
    seed: int = 0,
    scale: float = 0.5,
) -> pathlib.Path:
    """Writes a two-layer model with normal weights of standard deviation `scale` / sqrt(inputs).

    A larger scale makes logits more peaked and texts more repetitive.
    """
    rng = np.random.default_rng(seed)
    hidden, inner, heads, kv_heads, head_dim, layers = 32, 48, 4, 2, 8, 2
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        **SHARED_CONFIG,
        **FAMILIES[family],
    }

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        return (rng.standard_normal((outputs, inputs)) * scale / np.sqrt(inputs)).astype(np.float32)

    def norm(size: int) -> np.ndarray:
        offset = 0.0 if family.startswith("gemma") else 1.0
        return (offset + 0.1 * rng.standard_normal(size)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(vocab_size, hidden) * np.float32(hidden**0.5)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        tensors[attention + "q_proj.weight"] = matrix(heads * head_dim, hidden)
        tensors[attention + "k_proj.weight"] = matrix(kv_heads * head_dim, hidden)
        tensors[attention + "v_proj.weight"] = matrix(kv_heads * head_dim, hidden)
        tensors[attention + "o_proj.weight"] = matrix(hidden, heads * head_dim)
        tensors[prefix + "mlp.gate_proj.weight"] = matrix(inner, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = matrix(inner, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = matrix(hidden, inner)
        tensors[prefix + "input_layernorm.weight"] = norm(hidden)
        tensors[prefix + "post_attention_layernorm.weight"] = norm(hidden)
        if family in ("qwen3", "gemma3_text"):
            tensors[attention + "q_norm.weight"] = norm(head_dim)
            tensors[attention + "k_norm.weight"] = norm(head_dim)
        if family == "gemma3_text":
            tensors[prefix + "pre_feedforward_layernorm.weight"] = norm(hidden)
            tensors[prefix + "post_feedforward_layernorm.weight"] = norm(hidden)
    tensors["model.norm.weight"] = norm(hidden)

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


if __name__ == "__main__":
    print(write_tiny_model(pathlib.Path(sys.argv[1]), *sys.argv[2:3]))
