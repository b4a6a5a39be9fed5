"""Heads with decoder layers of their own: EAGLE-3, EAGLE and multi-token prediction."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.training.data import Example, draft_vocabulary
from forerun.training.heads import Guesses, Head, RmsNorm, linear
from forerun.training.options import TrainOptions
from forerun.training.target import Batch, Target

_FAR_BELOW = -1e9


class Attention(nn.Module):
    """Self-attention of the training-time test (Li et al., "EAGLE-3", section on training).

    At step 0 a row attends to the rows up to its own. At a later step the row of position t, which
    then stands for position t + step, attends to the rows of step 0 up to t and to its own of the
    steps between: what it would see when drafting from t.
    """

    def __init__(self, inputs: int, target: Target) -> None:
        """As many heads as the target has."""
        super().__init__()
        config = target.hf_config
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = (
            getattr(config, "head_dim", None) or target.hidden_size // self.num_heads
        )
        self.q_proj = linear(inputs, self.num_heads * self.head_dim)
        self.k_proj = linear(inputs, self.num_kv_heads * self.head_dim)
        self.v_proj = linear(inputs, self.num_kv_heads * self.head_dim)
        self.o_proj = linear(self.num_heads * self.head_dim, target.hidden_size)
        half = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        self.frequencies = 1.0 / target.rope_theta**half
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def _rotate(self, x: Tensor, step: int) -> Tensor:
        angles = (torch.arange(x.shape[-2]) + step)[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def forward(self, x: Tensor, step: int) -> Tensor:
        """[batch, length, inputs] -> [batch, length, hidden]. Steps are run from 0 on."""
        batch, length, _ = x.shape

        def heads(projection: nn.Linear, count: int) -> Tensor:
            split = projection(x).view(batch, length, count, self.head_dim).transpose(1, 2)
            return split.repeat_interleave(self.num_heads // count, 1)

        query = self._rotate(heads(self.q_proj, self.num_heads), step)
        key = self._rotate(heads(self.k_proj, self.num_kv_heads), step)
        value = heads(self.v_proj, self.num_kv_heads)
        if step == 0:
            self.keys, self.values = [key], [value]
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            self.keys.append(key)
            self.values.append(value)
            scale = self.head_dim**-0.5
            future = torch.full((length, length), _FAR_BELOW).triu(1)
            scores = query @ self.keys[0].transpose(-1, -2) * scale + future
            own = torch.stack([(query * k).sum(-1) for k in self.keys[1:]], -1) * scale
            weights = torch.cat([scores, own], -1).softmax(-1)
            attended = weights[..., :length] @ self.values[0]
            for i, own_value in enumerate(self.values[1:]):
                attended = attended + weights[..., length + i, None] * own_value
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))


class DraftLayer(nn.Module):
    """A decoder layer without the norm before attention."""

    def __init__(self, inputs: int, target: Target) -> None:
        """Attention reads `inputs` values."""
        super().__init__()
        hidden, inner = target.hidden_size, target.hf_config.intermediate_size
        self.attention = Attention(inputs, target)
        self.norm = RmsNorm(hidden, target.hf_config.rms_norm_eps)
        self.gate, self.up = linear(hidden, inner), linear(hidden, inner)
        self.down = linear(inner, hidden)

    def forward(self, residual: Tensor, attention_input: Tensor, step: int) -> Tensor:
        """The residual stream behind the layer."""
        middle = residual + self.attention(attention_input, step)
        normed = self.norm(middle)
        return middle + self.down(F.silu(self.gate(normed)) * self.up(normed))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Llama's names."""
        attention = {
            f"self_attn.{name}.weight": getattr(self.attention, name).weight
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        }
        mlp = {
            "mlp.gate_proj.weight": self.gate.weight,
            "mlp.up_proj.weight": self.up.weight,
            "mlp.down_proj.weight": self.down.weight,
            "post_attention_layernorm.weight": self.norm.weight,
        }
        return {prefix + name: value for name, value in (attention | mlp).items()}


class LayerHead(Head):
    """A head that feeds on its own output: every step of a batch is one of its drafts' tokens."""

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Draws the whole vocabulary; EAGLE-3 narrows it."""
        super().__init__()
        self.target, self.layer_ids = target, []
        self.num_steps = options.num_steps
        self.target_ids = torch.arange(target.vocab_size)
        self.output = nn.Parameter(target.lm_head.clone(), requires_grad=False)

    def guesses(self, batch: Batch) -> list[Guesses]:
        """Soft cross-entropy against the target's distribution over what can be drafted."""
        final = batch.final.reshape(-1, batch.final.shape[-1])
        draft_ids = torch.full((self.target.vocab_size,), -1)
        draft_ids[self.target_ids] = torch.arange(len(self.target_ids))
        first_rows, first_states = batch.rows(0)
        del first_rows
        with torch.no_grad():
            best = torch.full((final.shape[0],), -1)
            best[first_states] = (final[first_states] @ self.target.lm_head.T).argmax(-1)
            place = torch.full((final.shape[0],), -1)
            place[first_states] = torch.arange(len(first_states))
            head = self.target.lm_head[self.target_ids]
            truth = (final[first_states] @ head.T).softmax(-1)
        results = []
        feature = self.first_feature(batch)
        for step in range(self.num_steps):
            tokens = batch.tokens[:, 1 + step : 1 + step + batch.length]
            feature, normed = self.step(F.embedding(tokens, self.target.embedding), feature, step)
            rows, states = batch.rows(step)
            logits = normed.reshape(-1, normed.shape[-1])[rows] @ self.output.T
            wanted = draft_ids[best[states]]
            cross = -(truth[place[states]] * F.log_softmax(logits, -1)).sum(-1)
            loss = (cross * (wanted >= 0)).mean() + self.feature_loss(feature, final, rows, states)
            accuracy = (logits.detach().argmax(-1) == wanted).float().mean().item()
            results.append(Guesses(loss, accuracy))
        return results

    def first_feature(self, batch: Batch) -> Tensor:
        """What step 0 reads of the target."""
        return batch.final

    def step(self, embedding: Tensor, feature: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What the next step feeds on, and what the output matrix reads."""
        raise NotImplementedError

    def feature_loss(
        self, feature: Tensor, final: Tensor, rows: Tensor, states: Tensor
    ) -> Tensor | float:
        """How far what is fed back is from what it stands for; 0 where it need not be near."""
        return 0.0

    def base_config(self) -> dict[str, Any]:
        """The sizes of the layer, as Llama's config has them."""
        config, attention = self.target.hf_config, self.layer.attention
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.target.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.num_kv_heads,
            "head_dim": attention.head_dim,
            "num_hidden_layers": 1,
            "rms_norm_eps": config.rms_norm_eps,
            "hidden_act": "silu",
            "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": self.target.rope_theta,
            "vocab_size": self.target.vocab_size,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


class Eagle3(LayerHead):
    """EAGLE-3 with a norm of each feature, and the hidden state normed before the residual."""

    def __init__(self, target: Target, options: TrainOptions, examples: list[Example]) -> None:
        """`examples` give the draft vocabulary."""
        super().__init__(target, options)
        hidden, eps = target.hidden_size, target.hf_config.rms_norm_eps
        usual = [2, target.num_layers // 2, target.num_layers - 3]
        self.layer_ids = options.layer_ids or [min(max(k, 0), target.num_layers - 1) for k in usual]
        size = min(options.draft_vocab_size, target.vocab_size)
        self.target_ids = torch.tensor(draft_vocabulary(examples, size, target.eos_token_ids))
        self.shares_head = options.share_head
        self.output = nn.Parameter(
            target.lm_head[self.target_ids].clone(), requires_grad=not options.share_head
        )
        self.fc = linear(len(self.layer_ids) * hidden, hidden)
        # The latest of the states is the nearest to what is to be guessed from.
        self.fc.weight.data[:, -hidden:] += 0.5 * torch.eye(hidden)
        self.fc_norm = nn.ModuleList(RmsNorm(hidden, eps) for _ in self.layer_ids)
        self.input_norm, self.hidden_norm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)
        self.layer = DraftLayer(2 * hidden, target)
        self.norm = RmsNorm(hidden, eps, target.final_norm)

    def first_feature(self, batch: Batch) -> Tensor:
        """fc of the normed states."""
        parts = batch.taps.split(self.target.hidden_size, -1)
        normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
        return self.fc(torch.cat(normed, -1))

    def step(self, embedding: Tensor, feature: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The layer on [embedding, feature]; its output is fed back without the norm."""
        hidden = self.hidden_norm(feature)
        both = torch.cat([self.input_norm(embedding), hidden], -1)
        out = self.layer(hidden, both, step)
        return out, self.norm(out)

    def tensors(self) -> dict[str, Tensor]:
        """The research format's names; a shared head is left out, and its ids say which rows."""
        size = len(self.target_ids)
        can_draft = torch.zeros(self.target.vocab_size, dtype=torch.bool)
        can_draft[self.target_ids] = True
        tensors = {
            "fc.weight": self.fc.weight,
            "norm.weight": self.norm.weight,
            "midlayer.input_layernorm.weight": self.input_norm.weight,
            "midlayer.hidden_norm.weight": self.hidden_norm.weight,
            "d2t": self.target_ids - torch.arange(size),
            "t2d": can_draft,
        }
        tensors |= {f"fc_norm.{i}.weight": norm.weight for i, norm in enumerate(self.fc_norm)}
        if not self.shares_head:
            tensors["lm_head.weight"] = self.output
        return tensors | self.layer.tensors("midlayer.")

    def config(self) -> dict[str, Any]:
        """The research format's config."""
        return self.base_config() | {
            "draft_vocab_size": len(self.target_ids),
            "eagle_aux_hidden_state_layer_ids": self.layer_ids,
            "fc_norm": True,
            "norm_before_residual": True,
            "norm_output": False,
        }


class Eagle(LayerHead):
    """EAGLE: its output imitates the target's final state, and the target's head reads it."""

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Starts from the feature as it is."""
        super().__init__(target, options)
        hidden = target.hidden_size
        self.fc = linear(2 * hidden, hidden)
        self.fc.weight.data[:, hidden:] += torch.eye(hidden)
        self.layer = DraftLayer(hidden, target)

    def step(self, embedding: Tensor, feature: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The layer on fc of [embedding, feature]."""
        fused = self.fc(torch.cat([embedding, feature], -1))
        out = self.layer(fused, fused, step)
        return out, out

    def feature_loss(
        self, feature: Tensor, final: Tensor, rows: Tensor, states: Tensor
    ) -> Tensor | float:
        """Smooth L1 to the target's own state, which weighs ten times the cross-entropy."""
        return 10 * F.smooth_l1_loss(feature.reshape(-1, feature.shape[-1])[rows], final[states])

    def tensors(self) -> dict[str, Tensor]:
        """The research format's names."""
        return {"fc.weight": self.fc.weight} | self.layer.tensors("layers.0.")

    def config(self) -> dict[str, Any]:
        """The research format's config."""
        return self.base_config() | {"bias": False}


class Mtp(LayerHead):
    """A layer for multi-token prediction, in DeepSeek's names, for the target's own checkpoint."""

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Starts from the feature as it is."""
        super().__init__(target, options)
        hidden, eps = target.hidden_size, target.hf_config.rms_norm_eps
        self.embedding_norm, self.feature_norm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)
        self.fusion = linear(2 * hidden, hidden)
        self.fusion.weight.data[:, hidden:] += torch.eye(hidden)
        self.attention_norm = RmsNorm(hidden, eps)
        self.layer = DraftLayer(hidden, target)
        self.norm = RmsNorm(hidden, eps, target.final_norm)

    def step(self, embedding: Tensor, feature: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The layer on the fused norms; its normed output is fed back."""
        if step == 0:
            embedding = torch.cat([torch.zeros_like(embedding[:, :1]), embedding[:, 1:]], 1)
        both = torch.cat([self.embedding_norm(embedding), self.feature_norm(feature)], -1)
        fused = self.fusion(both)
        out = self.norm(self.layer(fused, self.attention_norm(fused), step))
        return out, out

    def tensors(self) -> dict[str, Tensor]:
        """DeepSeek's names, of the layer behind the target's last."""
        prefix = f"model.layers.{self.target.num_layers}."
        tensors = {
            "enorm.weight": self.embedding_norm.weight,
            "hnorm.weight": self.feature_norm.weight,
            "eh_proj.weight": self.fusion.weight,
            "shared_head.norm.weight": self.norm.weight,
            "input_layernorm.weight": self.attention_norm.weight,
        }
        return {prefix + k: v for k, v in tensors.items()} | self.layer.tensors(prefix)

    def config(self) -> dict[str, Any]:
        """The target's own, with one more layer to predict with."""
        return self.target.config | {"num_nextn_predict_layers": 1}
