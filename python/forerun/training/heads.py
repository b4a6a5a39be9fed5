"""What all heads have in common, and the stateless ones: Medusa and the MLP speculator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.training.options import TrainOptions
from forerun.training.target import Batch, Target


@dataclass
class Guesses:
    """How a position did on a batch: a loss to be minimised, and the share of right guesses."""

    loss: Tensor
    accuracy: float


class Head(nn.Module, ABC):
    """A head that is trained for a frozen target."""

    layer_ids: list[int]  # of the target's states that it reads beside the final one
    target: Target

    @abstractmethod
    def guesses(self, batch: Batch) -> list[Guesses]:
        """By position, the first guess behind the known tokens first."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The published tensors by name."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The published config.json."""


class RmsNorm(nn.Module):
    """Llama's norm."""

    def __init__(self, size: int, eps: float, weight: Tensor | None = None) -> None:
        """Starts from `weight`, or from ones."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size) if weight is None else weight.clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) * weight."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def linear(inputs: int, outputs: int, std: float = 0.02) -> nn.Linear:
    """Without bias, normally distributed."""
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=std)
    return made


def hard_guesses(logits: Tensor, labels: Tensor, best: Tensor) -> Guesses:
    """Cross-entropy against the tokens that came; accuracy against the target's best ones."""
    loss = F.cross_entropy(logits, labels)
    accuracy = (logits.detach().argmax(-1) == best).float().mean().item()
    return Guesses(loss, accuracy)


class OutputHeads(Head):
    """Heads that guess from one final state of the target, and are rid of in a few products."""

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Heads start as the target's own, which is right about the next token."""
        super().__init__()
        self.target, self.layer_ids = target, []
        self.num_heads = options.num_steps
        count = 1 if options.share_head else options.num_steps
        self.outputs = nn.ParameterList(
            nn.Parameter(target.lm_head.clone(), requires_grad=not options.share_head)
            for _ in range(count)
        )

    def output(self, index: int) -> Tensor:
        """The output matrix of a head."""
        return self.outputs[min(index, len(self.outputs) - 1)]

    def guesses(self, batch: Batch) -> list[Guesses]:
        """See Head."""
        flat_tokens = batch.tokens[:, : batch.length + self.num_heads + 1]
        final = batch.final.reshape(-1, batch.final.shape[-1])
        results = []
        for step in range(self.num_heads):
            rows, states = batch.rows(step)
            width = batch.length
            labels = flat_tokens[states // width, states % width + 1]
            with torch.no_grad():
                best = (final[states] @ self.target.lm_head.T).argmax(-1)
            hidden = self.states(batch, final, rows, step)
            results.append(hard_guesses(hidden @ self.output(step).T, labels, best))
        return results

    @abstractmethod
    def states(self, batch: Batch, final: Tensor, rows: Tensor, step: int) -> Tensor:
        """What a head's output matrix reads, for some of the rows."""


class Medusa(OutputHeads):
    """One residual block per head (formula in drafters' docs)."""

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Blocks start as nothing."""
        super().__init__(target, options)
        hidden = target.hidden_size
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(self.num_heads))
        for block in self.blocks:
            nn.init.zeros_(block.weight)
            nn.init.zeros_(block.bias)

    def states(self, batch: Batch, final: Tensor, rows: Tensor, step: int) -> Tensor:
        """h + silu(W h + b)."""
        known = final[rows]
        return known + F.silu(self.blocks[step](known))

    def tensors(self) -> dict[str, Tensor]:
        """vLLM's names."""
        tensors: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            tensors[f"blocks.{i}.layers.0.weight"] = block.weight
            tensors[f"blocks.{i}.layers.0.bias"] = block.bias
        if len(self.outputs) > 1:
            tensors |= {f"lm_heads.{i}.weight": w for i, w in enumerate(self.outputs)}
        return tensors

    def config(self) -> dict[str, Any]:
        """vLLM's config."""
        return {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": self.target.hidden_size,
            "vocab_size": self.target.vocab_size,
            "num_heads": self.num_heads,
            "num_hidden_layers": 1,
            "medusa_fc_bias": True,
            "original_lm_head": len(self.outputs) == 1,
        }


class MlpSpeculator(OutputHeads):
    """A recurrent state with tied weights, as wide as the target's."""

    def __init__(self, target: Target, options: TrainOptions) -> None:
        """Embeddings start as the target's."""
        super().__init__(target, options)
        hidden = target.hidden_size
        self.embedding = nn.Parameter(target.embedding / target.embedding.std())
        self.first, self.later = linear(hidden, hidden), linear(hidden, hidden)
        nn.init.eye_(self.first.weight)
        self.norm = nn.Parameter(torch.ones(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        state_weight = 0.5 ** (0.5 / self.num_heads)
        self.ratio = ((1 - state_weight**2) * hidden / 2) ** 0.5 / state_weight
        self._state: Tensor | None = None

    def states(self, batch: Batch, final: Tensor, rows: Tensor, step: int) -> Tensor:
        """The state behind the tokens up to t + 1 + step, for all rows; then of these."""
        tokens = batch.tokens[:, 1 + step : 1 + step + batch.length].reshape(-1)
        if step == 0:
            before = F.rms_norm(final, (final.shape[-1],), None, 1e-6) * 0.5**0.5
            mixed = self.first(before)
        else:
            assert self._state is not None
            mixed = self.later(self._state)
        mixed = mixed + self.ratio * F.embedding(tokens, self.embedding)
        normed = F.rms_norm(mixed, (mixed.shape[-1],), None, 1e-6)
        self._state = F.gelu(normed * self.norm + self.bias)
        return self._state[rows]

    def tensors(self) -> dict[str, Tensor]:
        """fms' names; what is tied is stored once."""
        return {
            "speculator.emb.0.weight": self.embedding,
            "speculator.proj.0.weight": self.first.weight,
            "speculator.proj.1.weight": self.later.weight,
            "speculator.ln.0.weight": self.norm,
            "speculator.ln.0.bias": self.bias,
            "speculator.head.0.weight": self.outputs[0],
        }

    def config(self) -> dict[str, Any]:
        """fms' config."""
        return {
            "architectures": ["MLPSpeculatorPreTrainedModel"],
            "model_type": "mlp_speculator",
            "vocab_size": self.target.vocab_size,
            "emb_dim": self.target.hidden_size,
            "inner_dim": self.target.hidden_size,
            "n_predict": self.num_heads,
            "top_k_tokens_per_head": [4] + [1] * (self.num_heads - 1),
            "n_candidates": 4,
            "tie_weights": True,
            "scale_input": True,
        }
