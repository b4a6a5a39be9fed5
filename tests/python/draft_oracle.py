"""What drafters with a layer of their own must compute, one token at a time, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class DraftOracle:
    """One row of a drafter after another, with a list of keys and values as its only memory.

    Attributes:
        weights: the checkpoint's tensors, by the published names.
        config: the checkpoint's config.
        embedding: the target's.
        keys, values: of the rows so far, [KV heads, head_dim] each.
    """

    weights: Mapping[str, Array]
    config: Mapping[str, Any]
    embedding: Array
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    def norm(self, x: Array, name: str) -> Array:
        eps = self.config["rms_norm_eps"]
        return x / np.sqrt((x * x).mean() + eps) * self.weights[name]

    def project(self, prefix: str, name: str, x: Array) -> Array:
        out = self.weights[f"{prefix}self_attn.{name}.weight"] @ x
        return out + self.weights.get(f"{prefix}self_attn.{name}.bias", 0.0)

    def rotate(self, x: Array, position: int) -> Array:
        size = x.shape[-1]
        angles = position / self.config["rope_theta"] ** (np.arange(0, size, 2) / size)
        first, second = x[..., : size // 2], x[..., size // 2 :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def layer(self, residual: Array, x: Array, position: int, prefix: str) -> Array:
        dim = self.config["head_dim"]
        query = self.rotate(self.project(prefix, "q_proj", x).reshape(-1, dim), position)
        self.keys.append(self.rotate(self.project(prefix, "k_proj", x).reshape(-1, dim), position))
        self.values.append(self.project(prefix, "v_proj", x).reshape(-1, dim))
        group = len(query) // len(self.keys[0])
        heads = []
        for head, q in enumerate(query):
            scores = np.array([k[head // group] @ q for k in self.keys]) / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            heads.append(sum(w * v[head // group] for w, v in zip(weights, self.values)))  # noqa: B905
        middle = residual + self.weights[prefix + "self_attn.o_proj.weight"] @ np.concatenate(heads)
        normed = self.norm(middle, prefix + "post_attention_layernorm.weight")
        gate = self.weights[prefix + "mlp.gate_proj.weight"] @ normed
        up = self.weights[prefix + "mlp.up_proj.weight"] @ normed
        down = self.weights[prefix + "mlp.down_proj.weight"]
        result: Array = middle + down @ (gate / (1 + np.exp(-gate)) * up)
        return result

    def first_feature(self, states: Array) -> Array:
        """What a row takes from the target's states (the auxiliary ones, then the final)."""
        hidden = self.embedding.shape[1]
        if "model.mtp_layers.0.input_proj.weight" in self.weights:
            # The state before the final norm but for its length, which a norm takes away.
            return states[-hidden:] / self.weights["model.norm.weight"]
        if "midlayer.hidden_norm.weight" not in self.weights:
            return states[-hidden:]
        aux = states[:-hidden].reshape(-1, hidden)
        if self.config["fc_norm"]:
            aux = np.stack([self.norm(t, f"fc_norm.{i}.weight") for i, t in enumerate(aux)])
        fused: Array = self.weights["fc.weight"] @ aux.reshape(-1)
        return fused

    def row(self, token: int, feature: Array, position: int) -> tuple[Array, Array]:
        """Appends a row; returns what is fed back, and what the output matrix reads."""
        embedded, w = self.embedding[token], self.weights
        if "midlayer.hidden_norm.weight" in w:
            prefix = "midlayer."
            normed = self.norm(feature, prefix + "hidden_norm.weight")
            x = np.concatenate([self.norm(embedded, prefix + "input_layernorm.weight"), normed])
            residual = normed if self.config["norm_before_residual"] else feature
            out = self.layer(residual, x, position, prefix)
            return out, self.norm(out, "norm.weight")
        if "fc.weight" in w:
            x = w["fc.weight"] @ np.concatenate([embedded, feature])
            out = self.layer(x, x, position, "layers.0.")
            return out, out
        prefix = "model.mtp_layers.0."
        embedded = embedded * (position > 0)
        parts = [
            self.norm(feature, prefix + "hidden_layernorm.weight"),
            self.norm(embedded, prefix + "token_layernorm.weight"),
        ]
        x = w[prefix + "input_proj.weight"] @ np.concatenate(parts)
        normed = self.norm(x, prefix + "input_layernorm.weight")
        out = self.norm(self.layer(x, normed, position, prefix), prefix + "final_layernorm.weight")
        return out, out

    def draft(self, tokens: list[int], states: Array, row: int, steps: int) -> list[Array]:
        """What the output matrix reads at each step of a draft after position `row`.

        Args:
            tokens: x_0, x_1, ...
            states: [positions, width], the target's.
            row: the last position whose states are read; x_{row + 1} is known.
            steps: drafted tokens, taken to be the text's.
        """
        self.keys, self.values = [], []
        read: list[Array] = []
        for t in range(row + 1):
            fed_back, out = self.row(tokens[t + 1], self.first_feature(states[t]), t)
        read.append(out)
        for step in range(1, steps):
            fed_back, out = self.row(tokens[row + 1 + step], fed_back, row + step)
            read.append(out)
        return read
