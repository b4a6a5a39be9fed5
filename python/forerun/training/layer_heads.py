"""Heads with a decoder layer of their own: EAGLE-3, EAGLE and multi-token prediction."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.training.batch import Batch
from forerun.training.heads import Head, Prediction, RmsNorm, linear, row_weights, truth_rows
from forerun.training.layers import DraftLayer
from forerun.training.losses import linear_cross_entropy
from forerun.training.options import TrainOptions, check_layer_ids
from forerun.training.target import Target


class LayerHead(Head):
    """A head that feeds on its own output: each step is the next token of all drafts at once."""

    layer: DraftLayer

    def __init__(
        self, target: Target, options: TrainOptions, vocabulary: list[int] | None = None
    ) -> None:
        """`vocabulary` are the ids that can be drafted; None means all."""
        assert options.num_positions is not None
        super().__init__(target, options.num_positions)
        self.vocabulary = None if vocabulary is None else torch.tensor(vocabulary)
        rows = target.lm_head if self.vocabulary is None else target.lm_head[self.vocabulary]
        self.output = nn.Parameter(rows, requires_grad=False)

    def feature(self, batch: Batch) -> Tensor:
        """What position 0 reads of the target, [batch, length, hidden]."""
        return batch.states[..., -self.target.hidden_size :]

    def fuse(self, embedding: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's residual and what its attention reads."""
        raise NotImplementedError

    def finish(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """What the next position is fed, and what the output matrix reads."""
        raise NotImplementedError

    def mask_embedding(self, embedding: Tensor) -> Tensor:
        """The embeddings of the target-fed rows, [batch, length, hidden]."""
        return embedding

    def feature_loss(self, out: Tensor, batch: Batch, step: int) -> Tensor | float:
        """How far the feedback is from the hidden state that it replaces; 0: not trained for."""
        return 0.0

    def predictions(self, batch: Batch) -> list[Prediction]:
        """Cross-entropy with the target's distribution over the tokens that can be drafted."""
        truth, drafted = self._truth(batch)
        feature = self.feature(batch)
        following = batch.tokens[:, 1 : 1 + batch.length]
        embedded = self.mask_embedding(F.embedding(following, self.target.embedding))
        residual, inputs = self.fuse(embedded, feature)
        self.layer.attention.context(inputs, batch)
        residual, inputs = (x.flatten(0, 1)[batch.flat_rows] for x in (residual, inputs))
        predictions = []
        fed_back = feature
        for step in range(self.num_positions):
            if step > 0:
                embedded = F.embedding(batch.known(step), self.target.embedding)
                residual, inputs = self.fuse(embedded, fed_back)
            out = self.layer(residual, inputs, batch, step)
            fed_back, read = self.finish(out)
            rows = truth_rows(batch, step)
            weights = row_weights(batch, step)
            loss, best = linear_cross_entropy(
                read, self.output, truth, rows, weights * drafted[rows]
            )
            ids = best if self.vocabulary is None else self.vocabulary.to(best.device)[best]
            predictions.append(Prediction(loss + self.feature_loss(out, batch, step), ids))
        return predictions

    @torch.no_grad()
    def _truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The target's distributions of first tokens, and whether its best one can be drafted."""
        final = batch.final_states(self.target.hidden_size, 1)
        if self.vocabulary is None:
            return self.target.logits(final).softmax(-1), torch.ones(len(final)).to(final.device)
        vocabulary = self.vocabulary.to(final.device)
        truth = self.target.logits(final, vocabulary).softmax(-1)
        return truth, torch.isin(batch.best, vocabulary).float()

    def base_config(self) -> dict[str, Any]:
        """The sizes of the layer, as Llama's config has them."""
        config, attention = self.target.config, self.layer.attention
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.target.hidden_size,
            "intermediate_size": self.layer.inner,
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
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
        }


class Eagle3(LayerHead):
    """EAGLE-3: reads three of the target's states, and feeds on what it makes itself."""

    needs_best = True

    def __init__(self, target: Target, options: TrainOptions, vocabulary: list[int]) -> None:
        """The last of the states that are read starts as the feature's main part."""
        super().__init__(target, options, vocabulary)
        hidden, eps = target.hidden_size, target.config.rms_norm_eps
        self.layer_ids = tuple(options.layer_ids or usual_layer_ids(target.num_layers))
        check_layer_ids(list(self.layer_ids), target.num_layers)
        self.shares_head = bool(options.share_head)
        self.norms_residual = bool(options.norm_before_residual)
        self.output.requires_grad_(not options.freeze_head)
        self.fc = linear(len(self.layer_ids) * hidden, hidden)
        with torch.no_grad():
            self.fc.weight[:, -hidden:] += 0.5 * torch.eye(hidden)
        count = len(self.layer_ids) if options.fc_norm else 0
        self.fc_norm = nn.ModuleList(RmsNorm(hidden, eps) for _ in range(count))
        self.input_norm, self.hidden_norm = RmsNorm(hidden, eps), RmsNorm(hidden, eps)
        self.layer = DraftLayer(2 * hidden, target, options.intermediate_size)
        self.norm = RmsNorm(hidden, eps, target.final_norm)

    def feature(self, batch: Batch) -> Tensor:
        """fc of the states, side by side."""
        aux = batch.states[..., : -self.target.hidden_size]
        if self.fc_norm:
            parts = torch.split(aux, self.target.hidden_size, -1)
            normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
            aux = torch.cat(normed, -1)
        result: Tensor = self.fc(aux)
        return result

    def fuse(self, embedding: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding first."""
        normed = self.hidden_norm(feature)
        inputs = torch.cat([self.input_norm(embedding), normed], -1)
        return (normed if self.norms_residual else feature), inputs

    def finish(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Fed back without the norm."""
        return out, self.norm(out)

    def tensors(self) -> dict[str, Tensor]:
        """The research format's names."""
        assert self.vocabulary is not None
        can_draft = torch.zeros(self.target.vocab_size, dtype=torch.bool)
        can_draft[self.vocabulary] = True
        tensors = {
            "fc.weight": self.fc.weight,
            "norm.weight": self.norm.weight,
            "midlayer.input_layernorm.weight": self.input_norm.weight,
            "midlayer.hidden_norm.weight": self.hidden_norm.weight,
            "d2t": self.vocabulary - torch.arange(len(self.vocabulary)),
            "t2d": can_draft,
        }
        tensors |= {f"fc_norm.{name}": weight for name, weight in self.fc_norm.named_parameters()}
        if not self.shares_head:
            tensors["lm_head.weight"] = self.output
        return tensors | self.layer.tensors("midlayer.")

    def config(self) -> dict[str, Any]:
        """The research format's config, with what its writers leave open."""
        assert self.vocabulary is not None
        config = self.base_config() | {
            "draft_vocab_size": len(self.vocabulary),
            "eagle_aux_hidden_state_layer_ids": list(self.layer_ids),
            "fc_norm": bool(self.fc_norm),
            "norm_before_residual": self.norms_residual,
            "norm_output": False,
        }
        return config | ({"share_target_head": True} if self.shares_head else {})


def usual_layer_ids(num_layers: int) -> list[int]:
    """A low, the middle and a high layer, as most checkpoints have them."""
    ids = [min(max(k, 0), num_layers - 1) for k in (2, num_layers // 2, num_layers - 3)]
    # A list that begins with 1 is read in the other convention.
    return sorted(ids) if ids[0] == 1 else ids


class Eagle(LayerHead):
    """EAGLE: its output imitates the target's final state, and the target's head reads it."""

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Starts from the feature as it is."""
        super().__init__(target, options)
        hidden = target.hidden_size
        self.fc = linear(2 * hidden, hidden)
        with torch.no_grad():
            self.fc.weight[:, hidden:] += torch.eye(hidden)
        self.layer = DraftLayer(hidden, target, options.intermediate_size)

    def fuse(self, embedding: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding first; no norm."""
        fused = self.fc(torch.cat([embedding, feature], -1))
        return fused, fused

    def finish(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """One and the same."""
        return out, out

    def feature_loss(self, out: Tensor, batch: Batch, step: int) -> Tensor | float:
        """Smooth L1 to the target's own state, at ten times the weight of the cross-entropy."""
        goal = batch.final_states(self.target.hidden_size, 1)[truth_rows(batch, step)]
        distance = F.smooth_l1_loss(out, goal, reduction="none").mean(-1)
        return 10 * (distance * row_weights(batch, step)).sum()

    def tensors(self) -> dict[str, Tensor]:
        """The research format's names."""
        return {"fc.weight": self.fc.weight} | self.layer.tensors("layers.0.")

    def config(self) -> dict[str, Any]:
        """The research format's config; `bias` is that of fc."""
        return self.base_config() | {"bias": False}
