"""GGUF metadata -> config.json and generation_config.json.

Every key under the architecture's name is either understood here or refused by name: a key that
was skipped could change what the model computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from forerun.checkpoints.convert.reader import GgufFile, shown
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

    def _key(self, name: str) -> str:
        self._used.add(name)
        return self._prefix + name

    def integer(self, name: str, default: int | None = None, most: int = 2**31 - 1) -> Any:
        return self._file.integer(self._key(name), default, least=1, most=most)

    def number(self, name: str, default: float | None = None) -> Any:
        return self._file.number(self._key(name), default)

    def text(self, name: str, default: str | None = None) -> Any:
        return self._file.text(self._key(name), default)

    def flags(self, name: str) -> Any:
        return self._file.items(self._key(name), bool)

    def is_list(self, name: str) -> bool:
        return isinstance(self._file.metadata.get(self._key(name)), list)

    def need(self, name: str, default: int | None = None) -> int:
        """A positive integer that must be there."""
        return int(self._there(name, self.integer(name, default)))

    def positive(self, name: str, default: float | None = None) -> float:
        """A positive number that must be there."""
        value = self._there(name, self.number(name, default))
        if not value > 0:
            raise self.refusal(name, value, "a positive number")
        return float(value)

    def _there(self, name: str, value: Any) -> Any:
        if value is None:
            raise CheckpointError(
                f"{self._file.path}: {self._prefix}{name}", "nothing", "a positive number"
            )
        return value

    def refusal(self, name: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self._file.path}: {self._prefix}{name}", shown(value), expected)

    def refuse_unused(self) -> None:
        for key, value in self._file.metadata.items():
            name = key.removeprefix(self._prefix)
            if name == key or name in self._used | _WITHOUT_EFFECT:
                continue
            if name in _ONLY_ZERO and value == 0:
                continue
            raise CheckpointError(
                f"{self._file.path}: {key}",
                shown(value),
                "no such key: this converter cannot honour it",
            )


def architecture(file: GgufFile) -> str:
    """The family of the file; CheckpointError when this converter does not know it."""
    arch = file.text("general.architecture")
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: general.architecture", arch, f"one of {', '.join(ARCHITECTURES)}"
        )
    if (count := file.integer("split.count", 0)) > 1:
        raise CheckpointError(f"{file.path}: split.count", count, "a GGUF in one file")
    return str(arch)


def model_config(file: GgufFile, rope_freqs: npt.NDArray[np.float32] | None) -> dict[str, Any]:
    """config.json of the file. `rope_freqs` are Llama 3's divisors of the rotary frequencies."""
    arch = architecture(file)
    keys = _Keys(file, arch)
    hidden, num_heads = keys.need("embedding_length"), keys.need("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // num_heads)
    if head_dim < 2 or head_dim % 2:
        raise keys.refusal("attention.key_length", head_dim, "an even width of a head")
    for name in ("attention.value_length", "rope.dimension_count"):
        if (value := keys.integer(name, head_dim)) != head_dim:
            raise keys.refusal(name, value, f"{head_dim}, the width of a head")
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path}: token_embd.weight", "nothing", "a tensor of that name")
    config = {
        "hidden_size": hidden,
        "intermediate_size": keys.need("feed_forward_length"),
        "num_hidden_layers": _num_layers(file, keys),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.need("attention.head_count_kv", default=num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.need("context_length"),
        "rms_norm_eps": keys.positive("attention.layer_norm_rms_epsilon"),
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


def _num_layers(file: GgufFile, keys: _Keys) -> int:
    count, blocks = keys.need("block_count"), set()
    for name in file.tensors:
        if match := re.match(r"blk\.(\d+)\.", name):
            blocks.add(match[1])
    if count != len(blocks):
        raise keys.refusal("block_count", count, f"{len(blocks)}, as there are blocks of tensors")
    return count


def _llama(
    file: GgufFile, keys: _Keys, rope_freqs: npt.NDArray[np.float32] | None
) -> dict[str, Any]:
    theta = keys.positive("rope.freq_base", 10000.0)
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
    name = "attention.sliding_window_pattern"
    if keys.is_list(name):
        local = keys.flags(name)
        if len(local) != num_layers:
            raise keys.refusal(name, f"{len(local)} values", f"{num_layers}, one for each layer")
    else:
        pattern = keys.integer(name, _GEMMA3_PATTERN)
        local = [(layer + 1) % pattern != 0 for layer in range(num_layers)]
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
        "rope_theta": keys.positive("rope.freq_base", 1000000.0),
        "rope_local_base_freq": keys.positive("rope.freq_base_swa", 10000.0),
        "rope_scaling": _rope_scaling(file, keys),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping"),
        "final_logit_softcapping": keys.number("final_logit_softcapping"),
        "attention_bias": False,
    }


def _rope_scaling(file: GgufFile, keys: _Keys) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    original = keys.integer("rope.scaling.original_context_length")
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
            if (value := keys.number(f"rope.scaling.{theirs}")) is not None:
                scaling[ours] = value
        return scaling
    raise CheckpointError(
        f"{file.path}: rope.scaling.type",
        kind,
        "none, linear, or yarn with original_context_length",
    )


def _llama3_scaling(
    file: GgufFile, theta: float, divisors: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """The `llama3` parameters that give the divisors which a GGUF stores."""
    low, high = 1.0, 4.0
    factor = float(divisors.max())
    if not (np.isfinite(divisors).all() and divisors.min() > 0):
        raise CheckpointError(
            f"{file.path}: rope_freqs.weight", "zero, negative or no numbers", "divisors"
        )
    with np.errstate(all="ignore"):  # of a theta that is out of range
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
        "bos_token_id": file.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.integer("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.integer("tokenizer.ggml.padding_token_id"),
    }
    return {name: token for name, token in ids.items() if token is not None}


def generation_config(file: GgufFile) -> dict[str, Any]:
    """generation_config.json: which tokens end a sequence, and the sampling the file recommends."""
    config = _token_ids(file)
    stops = list(_end_tokens(file))
    if stops:
        config["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    for ours, theirs in (("temperature", "temp"), ("top_k",) * 2, ("top_p",) * 2, ("min_p",) * 2):
        value = file.number(f"general.sampling.{theirs}")
        if value is not None:
            config[ours] = value
            config["do_sample"] = True
    return config


def _end_tokens(file: GgufFile) -> Iterable[int]:
    """The end of a sequence, the end of a turn, and what the chat template ends turns with."""
    tokens: list[str] = file.items("tokenizer.ggml.tokens", str, [])
    template: str = file.text("tokenizer.chat_template", "")
    found: dict[int, None] = {}
    for name in ("eos_token_id", "eot_token_id", "eom_token_id"):
        token = file.integer(f"tokenizer.ggml.{name}")
        if token is not None:
            found[token] = None
    for text in ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"):
        if text in template and text in tokens:
            found[tokens.index(text)] = None
    return found
