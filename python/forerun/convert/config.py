"""GGUF metadata -> config.json and generation_config.json.

Every key under the architecture's name is either understood here or refused by name: a key that
was skipped could change what the model computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from forerun.convert.reader import GgufFile
from forerun.errors import CheckpointError

ARCHITECTURES = ("llama", "gemma3")

# Keys that say nothing a converted model needs: sizes of training, or facts that the tensors show.
_WITHOUT_EFFECT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
# Keys of mixtures of experts and the like, which converters also write as zero for dense models.
_ONLY_ZERO = {"expert_count", "expert_used_count"}
# Facts about Gemma 3 that its files leave out: five sliding layers before each full one, and the
# depth of the 27B model, whose attention scale differs.
_GEMMA3_PATTERN = 6
_GEMMA3_27B_LAYERS = 62


class _Keys:
    """The keys of one architecture; remembers which were asked for."""

    def __init__(self, file: GgufFile, arch: str) -> None:
        self._file = file
        self._prefix = f"{arch}."
        self._used: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self._used.add(name)
        return self._file.metadata.get(self._prefix + name, default)

    def need(self, name: str, kind: type = int, default: Any = None) -> Any:
        value = self.get(name, default)
        if not isinstance(value, kind) or not value > 0:  # type: ignore[operator]
            raise CheckpointError(
                f"{self._file.path}: {self._prefix}{name}",
                "nothing" if value is None else value,
                "a positive number",
            )
        return value

    def refuse_unused(self) -> None:
        for key, value in self._file.metadata.items():
            name = key.removeprefix(self._prefix)
            if name == key or name in self._used | _WITHOUT_EFFECT:
                continue
            if name in _ONLY_ZERO and value == 0:
                continue
            raise CheckpointError(
                f"{self._file.path}: {key}", value, "no such key: this converter cannot honour it"
            )


def architecture(file: GgufFile) -> str:
    """The family of the file; CheckpointError when this converter does not know it."""
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: general.architecture", arch, f"one of {', '.join(ARCHITECTURES)}"
        )
    if file.metadata.get("split.count", 0) > 1:
        raise CheckpointError(
            f"{file.path}: split.count", file.metadata["split.count"], "a GGUF in one file"
        )
    return str(arch)


def model_config(file: GgufFile, rope_freqs: npt.NDArray[np.float32] | None) -> dict[str, Any]:
    """config.json of the file. `rope_freqs` are Llama 3's divisors of the rotary frequencies."""
    arch = architecture(file)
    keys = _Keys(file, arch)
    hidden, num_heads = keys.need("embedding_length"), keys.need("attention.head_count")
    head_dim = keys.get("attention.key_length", hidden // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.get(name, head_dim) != head_dim:
            raise CheckpointError(
                f"{file.path}: {arch}.{name}", keys.get(name), f"{head_dim}, the width of a head"
            )
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: token_embd.weight", "nothing", "a tensor of that name")
    config = {
        "hidden_size": hidden,
        "intermediate_size": keys.need("feed_forward_length"),
        "num_hidden_layers": keys.need("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.need("attention.head_count_kv", default=num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.need("context_length"),
        "rms_norm_eps": keys.need("attention.layer_norm_rms_epsilon", float),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "bfloat16",
    }
    if arch == "llama":
        config |= _llama(file, keys, rope_freqs)
    else:
        config |= _gemma3(file, keys, config)
    config |= _token_ids(file)
    keys.refuse_unused()
    return config


def _llama(
    file: GgufFile, keys: _Keys, rope_freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    theta = keys.get("rope.freq_base", 10000.0)
    scaling = _rope_scaling(file, keys)
    if rope_freqs is not None:
        scaling = _llama3_scaling(file, theta, rope_freqs)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _gemma3(file: GgufFile, keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    num_layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    pattern = keys.get("attention.sliding_window_pattern", _GEMMA3_PATTERN)
    local = (
        pattern
        if isinstance(pattern, list)
        else [(layer + 1) % pattern != 0 for layer in range(num_layers)]
    )
    # The 27B model alone scales its scores by the width per head of the hidden state.
    scale = head_dim
    if num_layers == _GEMMA3_27B_LAYERS:
        scale = config["hidden_size"] // config["num_attention_heads"]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scale,
        "sliding_window": keys.need("attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if is_local else "full_attention" for is_local in local
        ],
        "rope_theta": keys.get("rope.freq_base", 1000000.0),
        "rope_local_base_freq": keys.get("rope.freq_base_swa", 10000.0),
        "rope_scaling": _rope_scaling(file, keys),
        "attn_logit_softcapping": keys.get("attn_logit_softcapping"),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
        "attention_bias": False,
    }


def _rope_scaling(file: GgufFile, keys: _Keys) -> dict[str, Any] | None:
    kind = keys.get("rope.scaling.type", "linear")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    original = keys.get("rope.scaling.original_context_length")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and original:
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if keys.get(f"rope.scaling.{theirs}") is not None:
                scaling[ours] = keys.get(f"rope.scaling.{theirs}")
        return scaling
    raise CheckpointError(
        f"{file.path}: rope.scaling.type",
        kind,
        "none, linear, or yarn with original_context_length",
    )


def _llama3_scaling(
    file: GgufFile, theta: float, divisors: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """The `llama3` parameters behind the divisors that a GGUF stores instead of them."""
    low, high = 1.0, 4.0
    factor = float(divisors.max())
    inverse = theta ** (-np.arange(divisors.size, dtype=np.float64) / divisors.size)
    wavelength = 2 * np.pi / inverse
    for original in (8192, 4096, 16384, 32768, 131072):
        smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
        expected = 1.0 / ((1.0 - smooth) / factor + smooth)
        if np.allclose(divisors, expected, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise CheckpointError(
        f"{file.path}: rope_freqs.weight",
        f"{divisors.size} divisors up to {factor:g}",
        "those of Llama 3's scaling with frequency factors 1 and 4",
    )


def _token_ids(file: GgufFile) -> dict[str, Any]:
    ids = {
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return {name: token for name, token in ids.items() if token is not None}


def generation_config(file: GgufFile) -> dict[str, Any]:
    """generation_config.json: which tokens end a sequence, and the sampling the file recommends."""
    config = _token_ids(file)
    stops = list(_end_tokens(file))
    if stops:
        config["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    for ours, theirs in (("temperature", "temp"), ("top_k",) * 2, ("top_p",) * 2, ("min_p",) * 2):
        value = file.metadata.get(f"general.sampling.{theirs}")
        if value is not None:
            config[ours] = value
            config["do_sample"] = True
    return config


def _end_tokens(file: GgufFile) -> Iterable[int]:
    """The end of a sequence, the end of a turn, and what the chat template ends turns with."""
    tokens: list[str] = file.metadata.get("tokenizer.ggml.tokens", [])
    template = file.metadata.get("tokenizer.chat_template", "")
    found: dict[int, None] = {}
    for name in ("eos_token_id", "eot_token_id", "eom_token_id"):
        token = file.metadata.get(f"tokenizer.ggml.{name}")
        if token is not None:
            found[token] = None
    for text in ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"):
        if text in template and text in tokens:
            found[tokens.index(text)] = None
    return found
