"""A small language model with the target's vocabulary, taught by the target's distributions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.training.batch import Batch
from forerun.training.heads import Head, Prediction, row_weights
from forerun.training.losses import linear_cross_entropy
from forerun.training.options import TrainOptions
from forerun.training.target import Target

_HEAD_DIM = 64
_POSITIONS = 4  # of drafts, in the acceptance


class DraftModel(Head):
    """A Llama of few layers whose embedding is the target's, narrowed to its main directions."""

    reads_its_drafts = False

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Half as wide as the target unless the options say."""
        from transformers import LlamaConfig, LlamaForCausalLM

        assert options.num_layers is not None
        super().__init__(target, _POSITIONS)
        head_dim = min(_HEAD_DIM, target.hidden_size)
        heads = max(1, target.hidden_size // 2 // head_dim)
        hidden = options.hidden_size or heads * head_dim
        heads = max(1, hidden // head_dim)
        kv_heads = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, heads // 2))
        self._config = LlamaConfig(
            vocab_size=target.vocab_size,
            hidden_size=hidden,
            intermediate_size=options.intermediate_size or 8 * math.ceil(hidden / 3),
            num_hidden_layers=options.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=target.config.max_position_embeddings,
            rms_norm_eps=target.config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": target.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=target.config.bos_token_id,
            eos_token_id=target.config.eos_token_id,
        )
        self.model = LlamaForCausalLM(self._config)
        with torch.no_grad():
            self.embedding.copy_(narrowed(target.embedding, hidden))

    @property
    def embedding(self) -> nn.Parameter:
        """The embedding, which is the output matrix too."""
        weight: nn.Parameter = self.model.model.embed_tokens.weight
        return weight

    def predictions(self, batch: Batch) -> list[Prediction]:
        """One pass: a prediction depends on the tokens alone, at any depth of a draft."""
        tokens = batch.tokens[:, : batch.length]
        states = self.model.model(tokens, use_cache=False).last_hidden_state
        with torch.no_grad():
            final = batch.final_states(self.target.hidden_size, 1)
            truth = self.target.logits(final).softmax(-1)
        rows = torch.arange(len(truth), device=truth.device)
        read = states[batch.example, batch.position + 1]
        weights = row_weights(batch, 0)
        return [Prediction(*linear_cross_entropy(read, self.embedding, truth, rows, weights))]

    def tensors(self) -> dict[str, Tensor]:
        """Llama's names, without the tied output matrix."""
        return {f"model.{n}": t for n, t in self.model.model.named_parameters()}

    def config(self) -> dict[str, Any]:
        """Llama's config."""
        config = self._config
        names = [
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps"),
            *("max_position_embeddings", "bos_token_id", "eos_token_id"),
        ]
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "rope_theta": self.target.rope_theta,
            "torch_dtype": "bfloat16",
        } | {name: getattr(config, name) for name in names}


def narrowed(embedding: Tensor, size: int) -> Tensor:
    """The rows in the space of their `size` strongest directions, with a deviation of 0.02.

    Exact for their inner products as far as so few directions can be: the first factor of a
    truncated singular value decomposition. Directions that the rows do not have are zeros.
    """
    gram = embedding.double().T @ embedding.double()
    _, directions = torch.linalg.eigh(gram)
    strongest = directions.flip(1)[:, :size].to(embedding.dtype)
    rows = F.pad(embedding @ strongest, (0, max(0, size - strongest.shape[1])))
    result: Tensor = rows * (0.02 / rows.std())
    return result
