"""A layer for multi-token prediction, inside a copy of the target's checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from forerun.errors import CheckpointError
from forerun.training.batch import Batch
from forerun.training.checkpoint import read_checkpoint
from forerun.training.heads import RmsNorm, linear
from forerun.training.layer_heads import LayerHead
from forerun.training.layers import DraftLayer
from forerun.training.options import TrainOptions
from forerun.training.target import Target
from forerun.util.json_files import read_json_object

_PREFIX = "model.mtp_layers.0."
# MiMo is Qwen2 with such layers; these are Qwen2 but for biases that can be added as zeros.
_CAN_BE_MIMO = ("mimo", "qwen2", "llama")
_ATTENTION = ("q_proj", "k_proj", "v_proj")


class Mtp(LayerHead):
    """MiMo's layer: trained further where the target has one, added to a copy otherwise."""

    in_target = True

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Starts from the target's layer, or from the feature as it is."""
        super().__init__(target, options)
        self._stored = read_json_object(target.directory / "config.json")
        kind = self._stored.get("model_type")
        plain = not self._stored.get("mlp_bias") and not self._stored.get("use_sliding_window")
        has_output_bias = kind == "llama" and self._stored.get("attention_bias")
        if kind not in _CAN_BE_MIMO or not plain or has_output_bias:
            raise CheckpointError(
                "model_type", str(kind), "mimo, or a qwen2 or llama that can become one: without "
                "windows, and of biases those of queries, keys and values alone",
            )  # fmt: skip
        hidden, eps = target.hidden_size, target.config.rms_norm_eps
        self.embedding_norm, self.feature_norm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)
        self.fusion = linear(2 * hidden, hidden)
        with torch.no_grad():
            self.fusion.weight[:, :hidden] += torch.eye(hidden)
        self.attention_norm = RmsNorm(hidden, eps)
        self.layer = DraftLayer(hidden, target, None, bias=True)
        self.layer.attention.frequencies = target.rotary_frequencies()
        self.norm = RmsNorm(hidden, eps, target.final_norm)
        self._start_from_target()

    def _names(self) -> dict[str, nn.Parameter]:
        names = {
            "token_layernorm.weight": self.embedding_norm.weight,
            "hidden_layernorm.weight": self.feature_norm.weight,
            "input_proj.weight": self.fusion.weight,
            "input_layernorm.weight": self.attention_norm.weight,
            "final_layernorm.weight": self.norm.weight,
        }
        return names | self.layer.tensors("")

    @torch.no_grad()
    def _start_from_target(self) -> None:
        own = {_PREFIX + name: parameter for name, parameter in self._names().items()}
        for name, tensor in read_checkpoint(self.target.directory, own).items():
            own[name].copy_(tensor)

    def feature(self, batch: Batch) -> Tensor:
        """MiMo reads the state before the final norm, of which the layer's own norm takes the
        direction alone: the normed state divided by the norm's weight."""
        weight = self.target.final_norm
        return super().feature(batch) / torch.where(weight == 0, 1.0, weight)

    def mask_embedding(self, embedding: Tensor) -> Tensor:
        """MiMo reads no token at position 0."""
        return torch.cat([torch.zeros_like(embedding[:, :1]), embedding[:, 1:]], 1)

    def fuse(self, embedding: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden state first, unlike the other formats."""
        both = torch.cat([self.feature_norm(feature), self.embedding_norm(embedding)], -1)
        fused = self.fusion(both)
        return fused, self.attention_norm(fused)

    def finish(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """What the output matrix reads is fed back."""
        normed = self.norm(out)
        return normed, normed

    def tensors(self) -> dict[str, Tensor]:
        """The layer's, and biases of zeros where the target has none and MiMo does."""
        tensors: dict[str, Tensor] = {_PREFIX + n: t for n, t in self._names().items()}
        if self._stored["model_type"] == "llama":
            attention = self.layer.attention
            for index in range(self.target.num_layers):
                for name in _ATTENTION:
                    size = getattr(attention, name).out_features
                    tensors[f"model.layers.{index}.self_attn.{name}.bias"] = torch.zeros(size)
        return tensors

    def config(self) -> dict[str, Any]:
        """The target's own, as a MiMo's."""
        attention = self.layer.attention
        # MiMo has these biases without saying so.
        stored = {n: value for n, value in self._stored.items() if n != "attention_bias"}
        return stored | {
            "architectures": ["MiMoForCausalLM"],
            "model_type": "mimo",
            "head_dim": attention.head_dim,
            "num_nextn_predict_layers": 1,
        }
