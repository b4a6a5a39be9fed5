"""Small random Hugging Face checkpoints, made and judged by transformers, the oracle."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

# Sizes that are multiples of nothing in particular; head_dim is not hidden_size / heads.
SIZES = {
    "vocab_size": 131,
    "hidden_size": 40,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 18,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Variation:
    """One family with some of what its config.json can say."""

    name: str
    family: str
    fields: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "1GB"


def gemma3_ropes(**full: Any) -> dict[str, Any]:
    """Rope parameters by layer type, as Gemma 3 writes them."""
    return {
        "full_attention": {"rope_theta": 50000.0, "rope_type": "default", **full},
        "sliding_attention": {"rope_theta": 1000.0, "rope_type": "default"},
    }


VARIATIONS = [
    Variation("llama", "llama"),
    Variation("llama_biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Variation("llama_gelu", "llama", {"hidden_act": "gelu", "rms_norm_eps": 1e-3}),
    Variation("llama_multi_head", "llama", {"num_key_value_heads": 4, "head_dim": 10}),
    Variation("llama_multi_query", "llama", {"num_key_value_heads": 1}),
    Variation("llama_one_layer", "llama", {"num_hidden_layers": 1}),
    Variation("smollm", "llama", {"tie_word_embeddings": True}, torch.bfloat16),
    Variation("llama_float16", "llama", {}, torch.float16),
    Variation("llama_sharded", "llama", {}, torch.float32, "40KB"),
    Variation(
        "llama_linear",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 800.0, "factor": 3.0}},
    ),
    Variation("llama_llama3", "llama", {"rope_parameters": LLAMA3_ROPE}),
    Variation("llama_yarn", "llama", {"rope_parameters": YARN_ROPE}),
    Variation(
        "llama_yarn_mscale",
        "llama",
        {
            "rope_parameters": {
                **YARN_ROPE,
                "mscale": 0.7,
                "mscale_all_dim": 1.5,
                "beta_fast": 4.0,
                "beta_slow": 0.2,
            }
        },
    ),
    Variation(
        "llama_yarn_exact",
        "llama",
        {"rope_parameters": {**YARN_ROPE, "attention_factor": 0.8, "truncate": False}},
    ),
    Variation("mistral", "mistral", {"sliding_window": 13}),
    Variation("mistral_full", "mistral", {"sliding_window": None}),
    Variation("qwen2", "qwen2"),
    Variation(
        "qwen2_windows",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        torch.bfloat16,
    ),
    Variation("qwen3", "qwen3", {"tie_word_embeddings": True}),
    Variation(
        "qwen3_windows",
        "qwen3",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    Variation("gemma2", "gemma2", {"sliding_window": 11, "query_pre_attn_scalar": 20}),
    Variation(
        "gemma2_small_caps",
        "gemma2",
        {
            "sliding_window": 300,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "attention_bias": True,
        },
    ),
    Variation(
        "gemma2_no_caps",
        "gemma2",
        {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    Variation(
        "gemma3",
        "gemma3_text",
        {
            "sliding_window": 11,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": gemma3_ropes(),
        },
        torch.bfloat16,
    ),
    Variation(
        "gemma3_linear",
        "gemma3_text",
        {
            "num_hidden_layers": 7,
            "sliding_window": 5,
            "final_logit_softcapping": 4.0,
            "rope_parameters": gemma3_ropes(rope_type="linear", factor=8.0),
        },
    ),
]


def write_checkpoint(variation: Variation, directory: Path, seed: int = 0) -> Path:
    """Writes a model whose every weight matters: biases and norms are random too."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(variation.family, **{**SIZES, **variation.fields})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias") or "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(variation.dtype).save_pretrained(
            directory, max_shard_size=variation.max_shard_size
        )
    return directory


def write_gemma3_with_vision(directory: Path) -> Path:
    """Writes Gemma 3 as its larger sizes are published: the text model beside a vision tower."""
    torch.manual_seed(0)
    text = {**SIZES, "sliding_window": 11, "rope_parameters": gemma3_ropes()}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(directory)
    return directory


def reference_logits(
    directory: Path, token_ids: np.ndarray, model_class: Any = AutoModelForCausalLM
) -> np.ndarray:
    """Logits [tokens, vocabulary] in float32 arithmetic, teacher-forced, with eager attention."""
    # Loaded anew: a model cast to bfloat16 and back has rounded its rotary frequencies.
    model = model_class.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        ids = torch.from_numpy(token_ids.astype(np.int64))[None]
        return model(ids, use_cache=False).logits[0].numpy()
