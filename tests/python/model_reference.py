"""Checkpoints and decoder-only transformers in float64 NumPy, written from the formulas alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Config = dict[str, Any]

NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "BOOL": "?"}
PREFIXES = ("language_model.", "model.", "speculator.", "medusa_heads.", "draft_model.")


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], NUMPY_DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def read_pickle(path: Path) -> dict[str, npt.NDArray[Any]]:
    import torch

    state = torch.load(path, weights_only=True)
    return {
        name: (values.float() if values.is_floating_point() else values).numpy()
        for name, values in state.items()
    }


class Weights:
    """A checkpoint's tensors in float64, by their names without prefixes."""

    def __init__(self, directory: Path) -> None:
        tensors: dict[str, npt.NDArray[Any]] = {}
        for path in sorted(directory.glob("*.safetensors")):
            tensors |= read_safetensors(path)
        if not tensors:
            for path in (*directory.glob("*.bin"), *directory.glob("*.pt")):
                tensors |= read_pickle(path)
        self.tensors = {}
        for name, values in tensors.items():
            for prefix in PREFIXES:
                name = name.removeprefix(prefix)
            is_float = values.dtype.kind == "f"
            self.tensors[name] = values.astype(np.float64) if is_float else values

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]

    def get(self, *names: str) -> Any:
        """The first of these that there is; None if there is none."""
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def under(self, prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): values
            for name, values in self.tensors.items()
            if name.startswith(prefix)
        }


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.vectorize(erf)(x / np.sqrt(2.0)))


def rms_norm(x: Array, weight: Array | float, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rope_frequencies(config: Config, head_dim: int) -> Array:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = config.get("rope_theta") or scaling.get("rope_theta") or 10000.0
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / scaling["factor"]
    assert kind == "llama3"
    # Waves longer than the trained context are stretched, short ones kept, others blended.
    turns = scaling["original_max_position_embeddings"] * frequencies / (2.0 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling["factor"])


def rotate(x: Array, positions: npt.NDArray[Any], frequencies: Array) -> Array:
    """Rotates pairs (i, i + head_dim / 2) of [rows, heads, head_dim]."""
    angles = positions[:, None] * frequencies
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@dataclass
class Decoder:
    """A decoder layer: weights by their names within it."""

    weights: dict[str, Any]
    config: Config
    window: int | None = None

    def linear(self, name: str, x: Array) -> Array:
        bias = self.weights.get(f"{name}.bias", 0.0)
        return x @ self.weights[f"{name}.weight"].T + bias

    def norm(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.weights[f"{name}.weight"], self.config.get("rms_norm_eps", 1e-6))

    def attend(self, x: Array) -> Array:
        """Causal attention of rows at positions 0, 1, ..."""
        num_heads = self.config["num_attention_heads"]
        head_dim = self.config.get("head_dim") or self.config["hidden_size"] // num_heads
        rows = len(x)
        q, k, v = (
            self.linear(f"self_attn.{name}_proj", x).reshape(rows, -1, head_dim) for name in "qkv"
        )
        if "self_attn.q_norm.weight" in self.weights:
            q, k = self.norm("self_attn.q_norm", q), self.norm("self_attn.k_norm", k)
        positions = np.arange(rows)
        frequencies = rope_frequencies(self.config, head_dim)
        q, k = rotate(q, positions, frequencies), rotate(k, positions, frequencies)
        assert q.shape[1] == num_heads
        k, v = (np.repeat(part, num_heads // part.shape[1], axis=1) for part in (k, v))
        q, k, v = (part.transpose(1, 0, 2) for part in (q, k, v))  # heads first
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(head_dim)
        distance = positions[:, None] - positions
        is_hidden = distance < 0
        if self.window is not None:
            is_hidden |= distance >= self.window
        scores = np.where(is_hidden, -np.inf, scores)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return self.linear("self_attn.o_proj", (scores @ v).transpose(1, 0, 2).reshape(rows, -1))

    def mlp(self, x: Array) -> Array:
        activate = {"silu": silu, "gelu": gelu}[self.config.get("hidden_act") or "silu"]
        gate = activate(self.linear("mlp.gate_proj", x))
        return self.linear("mlp.down_proj", gate * self.linear("mlp.up_proj", x))

    def finish(self, residual: Array, attention_input: Array) -> Array:
        """What leaves the layer if `attention_input` is attended to and added to the residual."""
        middle = residual + self.attend(attention_input)
        return middle + self.mlp(self.norm("post_attention_layernorm", middle))

    def __call__(self, x: Array) -> Array:
        return self.finish(x, self.norm("input_layernorm", x))


class LanguageModel:
    """A decoder-only transformer: the target, or a draft model."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.weights = Weights(directory)
        self.num_layers = self.config["num_hidden_layers"]
        self.layers = [
            Decoder(self.weights.under(f"layers.{index}."), self.config)
            for index in range(self.num_layers)
        ]
        self.embedding = self.weights["embed_tokens.weight"]
        self.lm_head = self.embedding
        if not self.config.get("tie_word_embeddings", False):
            self.lm_head = self.weights["lm_head.weight"]
        self.done: list[tuple[list[int], list[Array]]] = []

    def residuals(self, tokens: Sequence[int]) -> list[Array]:
        """R_k for k = 0 ... the number of layers: [tokens, hidden] after k layers."""
        wanted = list(tokens)
        for known, residuals in self.done:
            if known[: len(wanted)] == wanted:
                return [rows[: len(wanted)] for rows in residuals]  # they are causal
        residuals = [self.embedding[wanted]]
        for layer in self.layers:
            residuals.append(layer(residuals[-1]))
        self.done.append((wanted, residuals))
        return residuals

    def hidden(self, tokens: Sequence[int]) -> Array:
        """h_t: what the head reads."""
        eps = self.config["rms_norm_eps"]
        return rms_norm(self.residuals(tokens)[-1], self.weights["norm.weight"], eps)

    def logits(self, tokens: Sequence[int]) -> Array:
        return self.hidden(tokens) @ self.lm_head.T
