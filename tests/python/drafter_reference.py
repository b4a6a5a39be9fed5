"""Drafters in float64 NumPy, by full recomputation: the oracle of the engine's drafts.

Reads checkpoints by its own knowledge of their formats. `draft_logits` is a function of the known
tokens and of the draft tokens after them: it knows of no cycles, and of no keys and values kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from model_reference import (
    Array,
    Config,
    Decoder,
    LanguageModel,
    Weights,
    gelu,
    rms_norm,
    sigmoid,
    silu,
)


class Drafter:
    """`target_ids` are those of the logits' indices; None if they are their own numbers."""

    target_ids: npt.NDArray[np.int64] | None = None

    def __init__(self, target: LanguageModel, directory: Path | None, options: Config) -> None:
        self.target = target
        self.options = options
        if directory is not None:
            self.file_config: Config = json.loads((directory / "config.json").read_text())
            self.weights = Weights(directory)
        else:
            self.file_config, self.weights = target.config, target.weights
        self.config = self.flatten(self.file_config)
        self.embedding = target.embedding
        self.lm_head = target.lm_head

    def flatten(self, config: Config) -> Config:
        return config

    def logits(self, tokens: Sequence[int], path: Sequence[int]) -> Array:
        """Of the token after tokens + path."""
        raise NotImplementedError


class DraftModel(Drafter):
    def __init__(self, target: LanguageModel, directory: Path, options: Config) -> None:
        super().__init__(target, directory, options)
        self.model = LanguageModel(directory)

    def logits(self, tokens: Sequence[int], path: Sequence[int]) -> Array:
        return self.model.logits([*tokens, *path])[-1]


class Recurrent(Drafter):
    """EAGLE, EAGLE-3 and MTP: row t reads the token t + 1 and a feature of position t.

    Features of known positions come from the target, later ones are the drafter's own output of
    the row before.
    """

    def __init__(self, target: LanguageModel, directory: Path | None, options: Config) -> None:
        super().__init__(target, directory, options)
        # Results by known tokens and path. Every one is of all rows, computed anew.
        self.done: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Array, Array]] = {}

    def features(self, tokens: Sequence[int]) -> Array:
        raise NotImplementedError

    def forward(self, embedded: Array, features: Array) -> tuple[Array, Array]:
        """Of all rows: what the head reads, and the feature for a next row."""
        raise NotImplementedError

    def embed(self, tokens: Sequence[int]) -> Array:
        return self.embedding[list(tokens)]

    def logits(self, tokens: Sequence[int], path: Sequence[int]) -> Array:
        return self.rows(tuple(tokens), tuple(path))[0] @ self.lm_head.T

    def rows(self, tokens: tuple[int, ...], path: tuple[int, ...]) -> tuple[Array, Array]:
        """What the head reads of the last row, and the features of all rows and of the next."""
        if (tokens, path) not in self.done:
            # The newest known token's feature is not there yet.
            features = self.rows(tokens, path[:-1])[1] if path else self.features(tokens)[:-1]
            read, fed_back = self.forward(self.embed((tokens + path)[1:]), features)
            self.done[tokens, path] = read[-1], np.concatenate([features, fed_back[-1:]])
        return self.done[tokens, path]


class Eagle(Recurrent):
    def __init__(self, target: LanguageModel, directory: Path, options: Config) -> None:
        super().__init__(target, directory, options)
        self.layer = Decoder(self.weights.under("layers.0."), self.config)
        self.embedding = self.weights.get("embed_tokens.weight")
        if self.embedding is None:
            self.embedding = target.embedding

    def flatten(self, config: Config) -> Config:
        return config["model"] if isinstance(config.get("model"), dict) else config

    def features(self, tokens: Sequence[int]) -> Array:
        return self.target.hidden(tokens)

    def forward(self, embedded: Array, features: Array) -> tuple[Array, Array]:
        x = np.concatenate([embedded, features], axis=-1) @ self.weights["fc.weight"].T
        if self.config.get("bias", True):
            x = x + self.weights["fc.bias"]
        output = self.layer.finish(x, x)
        return output, output


class Eagle3(Recurrent):
    def __init__(self, target: LanguageModel, directory: Path, options: Config) -> None:
        super().__init__(target, directory, options)
        weights, config = self.weights, self.config
        first = weights.under("midlayer.") or weights.under("layers.0.")
        self.layers = [Decoder(first, config, self.window(0))]
        for index in range(1, config.get("num_hidden_layers", 1)):
            window = self.window(index)
            self.layers.append(Decoder(weights.under(f"layers.{index}."), config, window))
        if "embed_tokens.weight" in weights:
            self.embedding = weights["embed_tokens.weight"]
        if "d2t" in weights:
            self.target_ids = np.arange(len(weights["d2t"])) + weights["d2t"]
        if "lm_head.weight" in weights:
            self.lm_head = weights["lm_head.weight"]
        elif self.target_ids is not None:
            self.lm_head = target.lm_head[self.target_ids]
        self.norm_before_residual = options.get(
            "norm_before_residual",
            config.get("norm_before_residual", "speculators_model_type" in config),
        )
        self.norm_output = options.get("norm_output", config.get("norm_output", False))
        self.scale = config.get("logit_scale", 1.0)
        self.epsilon = config.get("rms_norm_eps", 1e-6)

    def flatten(self, config: Config) -> Config:
        inner = config.get("transformer_layer_config") or {}
        return {**inner, **(config.get("eagle_config") or {}), **config}

    def window(self, index: int) -> int | None:
        types = self.config.get("layer_types") or []
        is_sliding = index < len(types) and types[index] == "sliding_attention"
        return self.config["sliding_window"] if is_sliding else None

    def aux_layers(self) -> list[int]:
        """k of R_k, the residual stream that enters layer k."""
        given = self.options.get("aux_hidden_state_layer_ids")
        if given:
            return list(given)
        ids = self.config.get("eagle_aux_hidden_state_layer_ids")
        if not ids:
            return [2, self.target.num_layers // 2, self.target.num_layers - 3]
        # Lists that begin with layer 1 name the layers that the states leave, but for speculators.
        leaves = ids[0] == 1 and "speculators_model_type" not in self.config
        return [k + 1 for k in ids] if leaves else list(ids)

    def features(self, tokens: Sequence[int]) -> Array:
        if "fc.weight" not in self.weights:
            return self.target.hidden(tokens)
        residuals = self.target.residuals(tokens)
        chunks = [residuals[k] for k in self.aux_layers()]
        eps = self.epsilon
        if "fc_norm.0.weight" in self.weights:
            norms = [self.weights[f"fc_norm.{i}.weight"] for i in range(len(chunks))]
            chunks = [rms_norm(x, norm, eps) for x, norm in zip(chunks, norms, strict=True)]
        x = np.concatenate(chunks, axis=-1)
        if "input_norm.weight" in self.weights:
            x = rms_norm(x, self.weights["input_norm.weight"], eps)
        return x @ self.weights["fc.weight"].T

    def forward(self, embedded: Array, features: Array) -> tuple[Array, Array]:
        first, *others = self.layers
        normed = first.norm("hidden_norm", features)
        both = np.concatenate([first.norm("input_layernorm", embedded), normed], axis=-1)
        x = first.finish(normed if self.norm_before_residual else features, both)
        for layer in others:
            x = layer(x)
        read = rms_norm(x, self.weights["norm.weight"], self.epsilon)
        return read * self.scale, read if self.norm_output else x


class Mtp(Recurrent):
    def __init__(self, target: LanguageModel, directory: Path | None, options: Config) -> None:
        super().__init__(target, directory, options)
        extra = f"layers.{target.num_layers}."
        formats = {  # fusion: embedding's norm, hidden's norm, final norm, layer, masks position 0
            "mtp_layers.0.input_proj": (
                *("mtp_layers.0.token_layernorm", "mtp_layers.0.hidden_layernorm"),
                *("mtp_layers.0.final_layernorm", "mtp_layers.0.", True),
            ),
            f"{extra}eh_proj": (
                *(f"{extra}enorm", f"{extra}hnorm", f"{extra}shared_head.norm", extra, True),
            ),
            "mtp.fc": (
                *("mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"),
                *("mtp.layers.0.", False),
            ),
            "mtp.layers.0.eh_proj": (
                *("mtp.layers.0.enorm", "mtp.layers.0.hnorm", "mtp.layers.0.final_layernorm"),
                *("mtp.layers.0.", False),
            ),
            "mtp_linear_proj.0": (
                *("mtp_emb_norm.0", "mtp_hidden_norm.0", None, "mtp_block.0.", True),
            ),
        }
        self.fusion = next(name for name in formats if f"{name}.weight" in self.weights)
        names = formats[self.fusion]
        self.embedding_norm, self.hidden_norm, self.final_norm, layer, self.masks_first = names
        self.layer = Decoder(self.weights.under(layer), target.config)
        names = (target.config["model_type"], *target.config.get("architectures", []))
        is_mimo = "mimo" in names or "MiMoForCausalLM" in names
        self.is_hidden_first = is_mimo
        self.reads_normed = options.get("norm_target_state", not is_mimo)

    def norm(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.weights[f"{name}.weight"], self.target.config["rms_norm_eps"])

    def features(self, tokens: Sequence[int]) -> Array:
        return (
            self.target.hidden(tokens) if self.reads_normed else self.target.residuals(tokens)[-1]
        )

    def embed(self, tokens: Sequence[int]) -> Array:
        embedded = super().embed(tokens).copy()
        if self.masks_first:
            embedded[0] = 0.0
        return embedded

    def forward(self, embedded: Array, features: Array) -> tuple[Array, Array]:
        parts = [self.norm(self.embedding_norm, embedded), self.norm(self.hidden_norm, features)]
        if self.is_hidden_first:
            parts.reverse()
        x = self.layer(np.concatenate(parts, axis=-1) @ self.weights[f"{self.fusion}.weight"].T)
        output = self.norm(self.final_norm, x) if self.final_norm else x
        return output, output


class Medusa(Drafter):
    def __init__(self, target: LanguageModel, directory: Path, options: Config) -> None:
        super().__init__(target, directory, options)
        self.target_ids = self.weights.get("token_map")
        self.is_research = "0.0.linear.weight" in self.weights

    def logits(self, tokens: Sequence[int], path: Sequence[int]) -> Array:
        head = len(path)
        x = self.target.hidden(tokens)[-2]  # the one whose logits gave the newest token
        names = f"{head}.{{}}.linear" if self.is_research else f"blocks.{head}.layers.{{}}"
        layer = 0
        while (weight := self.weights.get(f"{names.format(layer)}.weight")) is not None:
            bias = self.weights.get(f"{names.format(layer)}.bias")
            x = x + silu(weight @ x + (0.0 if bias is None else bias))
            layer += 1
        assert layer > 0
        own = f"{head}.{layer}.weight" if self.is_research else f"lm_heads.{head}.weight"
        lm_head = self.weights.get(own, "lm_head.weight")
        if lm_head is None:
            lm_head = self.lm_head
        return lm_head @ x * self.config.get("logit_scale", 1.0)


class MlpSpeculator(Drafter):
    def head(self, kind: str, index: int) -> Any:
        fallback = min(index, 1) if kind == "proj" else 0
        return self.weights.get(f"{kind}.{index}.weight", f"{kind}.{fallback}.weight")

    def norm(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.weights[f"{name}.weight"], 1e-6) + self.weights[f"{name}.bias"]

    def start(self, tokens: Sequence[int]) -> Array:
        state = self.target.hidden(tokens)[-2]
        if self.config["scale_input"]:
            state = rms_norm(state, 1.0, 1e-6) / np.sqrt(2.0)
        return state

    def embedding_weight(self, inner: int) -> float:
        """What embeddings are multiplied with; the state is not."""
        state_weight = 0.5 ** (0.5 / self.config["n_predict"])
        return float(np.sqrt((1.0 - state_weight**2) * inner / 2.0) / state_weight)

    def logits(self, tokens: Sequence[int], path: Sequence[int]) -> Array:
        state = self.start(tokens)
        for index, token in enumerate([tokens[-1], *path]):
            embedding = self.head("emb", index)
            weight = self.embedding_weight(embedding.shape[1])
            state = self.head("proj", index) @ state + weight * embedding[token]
            norm = f"ln.{index if f'ln.{index}.weight' in self.weights else 0}"
            state = gelu(self.norm(norm, state))
        return self.head("head", index) @ state


class ArcticLstm(MlpSpeculator):
    def logits(self, tokens: Sequence[int], path: Sequence[int]) -> Array:
        state: Array = self.start(tokens)
        cell: Array | float = 0.0
        inner = len(self.weights["forget_proj.0.weight"])
        for index, token in enumerate([tokens[-1], *path]):
            gates = []
            for name in ("forget", "input", "output", "cell"):
                embedding = self.weights.get(f"{name}_emb.0.weight", "forget_emb.0.weight")[token]
                projection = self.weights[f"{name}_proj.{min(index, 1)}.weight"]
                gates.append(projection @ state + self.embedding_weight(inner) * embedding)
            keep, let_in, let_out, new = gates
            cell = cell * sigmoid(keep) + gelu(self.norm("cell_ln.0", new)) * sigmoid(let_in)
            state = gelu(self.norm("state_ln.0", cell)) * sigmoid(let_out)
        return self.weights["head.0.weight"] @ state


METHODS: dict[str, type[Drafter]] = {
    "draft_model": DraftModel,
    "eagle": Eagle,
    "eagle3": Eagle3,
    "mtp": Mtp,
    "medusa": Medusa,
    "mlp_speculator": MlpSpeculator,
}


def make_drafter(
    method: str, target: LanguageModel, directory: Path | None, **options: Any
) -> Drafter:
    """`options` are those of SpeculativeOptions that say how the checkpoint is to be read."""
    cls = METHODS[method]
    if directory is not None and method == "mlp_speculator":
        config = json.loads((directory / "config.json").read_text())
        if config.get("method") == "sum_lstm":
            cls = ArcticLstm
    return cls(target, directory, options)


def draft_logits(drafter: Drafter, tokens: Sequence[int], path: Sequence[int]) -> Array:
    """Logits, in the draft vocabulary, of the row after the known tokens and the path."""
    return drafter.logits(tokens, path)
