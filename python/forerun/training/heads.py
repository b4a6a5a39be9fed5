"""What drafters in training have in common, and those without layers: Medusa, MLP speculator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.training.batch import Batch
from forerun.training.losses import linear_cross_entropy
from forerun.training.options import TrainOptions
from forerun.training.target import Target


@dataclass
class Prediction:
    """What a drafter makes of one position of all rows of a batch.

    Attributes:
        loss: mean over the rows that can be judged.
        tokens: [rows], the most probable token, as the target numbers them.
    """

    loss: Tensor
    tokens: Tensor


class Head(nn.Module):
    """A drafter in training.

    Attributes:
        layer_ids: the target's layers whose states it reads beside the final one.
        num_positions: tokens of its drafts that it is trained for.
        reads_its_drafts: False where a prediction never depends on the drafter's states of earlier
            ones, as an independent model's: one pass then has the predictions of all positions.
        needs_best: whether batches must have `best`.
        in_target: whether the checkpoint is a copy of the target's with tensors added.
    """

    layer_ids: tuple[int, ...] = ()
    reads_its_drafts = True
    needs_best = False
    in_target = False

    def __init__(self, target: Target, num_positions: int) -> None:
        """Keeps the target, whose parameters are not its own."""
        super().__init__()
        self.target = target
        self.num_positions = num_positions

    def predictions(self, batch: Batch) -> list[Prediction]:
        """Predictions by position, each made as if those before had been accepted."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint, by the published names."""
        raise NotImplementedError

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes the weights of a checkpoint that has all of `tensors()` but the vocabulary's."""
        for name, own in self.tensors().items():
            if name in tensors:
                own.copy_(tensors[name])

    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        raise NotImplementedError


class RmsNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, size: int, eps: float, weight: Tensor | None = None) -> None:
        """Ones, or a copy of `weight`."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size) if weight is None else weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Norms the last dimension."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A small random map."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def row_weights(batch: Batch, step: int) -> Tensor:
    """[rows]: equal shares for the rows whose prediction `step` can be judged, 0 for others."""
    counted = (batch.remaining > step).float()
    return counted / counted.sum().clamp(min=1)


def truth_rows(batch: Batch, step: int) -> Tensor:
    """[rows]: the row whose first prediction is of the token of this row's `step`-th."""
    return torch.arange(len(batch.remaining), device=batch.remaining.device) + torch.where(
        batch.remaining > step, step, 0
    )


class Medusa(Head):
    """Residual blocks on the target's final state, a stack for each position.

    A head starts as the target's own: its blocks add nothing yet.
    """

    def __init__(self, target: Target, options: TrainOptions, vocabulary: list[int] | None) -> None:
        """`vocabulary` are the ids that can be drafted; None means all."""
        assert options.num_positions is not None
        assert options.num_layers is not None
        super().__init__(target, options.num_positions)
        hidden = target.hidden_size
        self.num_blocks = options.num_layers
        self.shares_head = bool(options.share_head)
        self.vocabulary = None if vocabulary is None else torch.tensor(vocabulary)
        self.blocks = nn.ParameterList(
            nn.Parameter(torch.zeros(self.num_blocks, hidden, hidden))
            for _ in range(self.num_positions)
        )
        rows = target.lm_head if self.vocabulary is None else target.lm_head[self.vocabulary]
        # Frozen heads are all the same one.
        count = 1 if options.freeze_head else self.num_positions
        self.outputs = nn.ParameterList(
            nn.Parameter(rows.clone(), requires_grad=not options.freeze_head) for _ in range(count)
        )

    def predictions(self, batch: Batch) -> list[Prediction]:
        """Cross-entropy with the tokens that came."""
        size = self.target.vocab_size if self.vocabulary is None else len(self.vocabulary)
        draft_ids = torch.arange(self.target.vocab_size)
        if self.vocabulary is not None:
            draft_ids = torch.full((self.target.vocab_size,), -1)
            draft_ids[self.vocabulary] = torch.arange(size)
        final = batch.final_states(self.target.hidden_size, 0)
        predictions = []
        for step in range(self.num_positions):
            state = final
            for block in self.blocks[step]:
                state = state + F.silu(F.linear(state, block))
            labels = draft_ids.to(final.device)[batch.truth(step)]
            weights = row_weights(batch, step) * (labels >= 0)
            rows = torch.arange(len(labels), device=final.device)
            output = self.outputs[step % len(self.outputs)]
            loss, best = linear_cross_entropy(state, output, labels.clamp(min=0), rows, weights)
            ids = best if self.vocabulary is None else self.vocabulary.to(best.device)[best]
            predictions.append(Prediction(loss, ids))
        return predictions

    def tensors(self) -> dict[str, Tensor]:
        """vLLM's names; an output matrix of the target's own rows only where it is asked for."""
        tensors = {
            f"blocks.{i}.layers.{j}.weight": block
            for i, blocks in enumerate(self.blocks)
            for j, block in enumerate(blocks)
        }
        if self.vocabulary is not None:
            tensors["token_map"] = self.vocabulary
        if self.shares_head:
            return tensors
        if len(self.outputs) == 1:
            return tensors | {"lm_head.weight": self.outputs[0]}
        return tensors | {f"lm_heads.{i}.weight": rows for i, rows in enumerate(self.outputs)}

    def config(self) -> dict[str, Any]:
        """vLLM's config."""
        size = self.target.vocab_size
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": self.target.hidden_size,
            "vocab_size": size,
            "truncated_vocab_size": size if self.vocabulary is None else len(self.vocabulary),
            "num_heads": self.num_positions,
            "num_hidden_layers": self.num_blocks,
            "medusa_fc_bias": False,
            "original_lm_head": len(self.outputs) == 1,
            "torch_dtype": "bfloat16",
        }
        return config | ({"share_target_head": True} if self.shares_head else {})


class MlpSpeculator(Head):
    """A recurrent state that takes in a token per position; its weights are tied over positions.

    Its embeddings are a learned map of the target's: what is learned of a token serves all. With a
    `loss_vocab_size`, a step compares the most frequent tokens, the batch's own, and others that
    are drawn: rare ones must stay improbable too.
    """

    def __init__(
        self, target: Target, options: TrainOptions, frequent: list[int] | None = None
    ) -> None:
        """As wide as the target; the output matrix starts as the target's.

        `frequent` are the ids, most frequent in the answers, that every step compares; None: all.
        """
        assert options.num_positions is not None
        super().__init__(target, options.num_positions)
        hidden = target.hidden_size
        # As small as random ones, which the scaled inputs are made for: the state counts too.
        scaled = target.embedding / (target.embedding.std() * hidden**0.5)
        self.emb = nn.Parameter(scaled, requires_grad=False)
        self.emb_map = nn.Parameter(torch.eye(hidden))
        self.first, self.later = linear(hidden, hidden), linear(hidden, hidden)
        nn.init.eye_(self.first.weight)
        self.ln_weight = nn.Parameter(torch.ones(hidden))
        self.ln_bias = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Parameter(target.lm_head.clone(), requires_grad=not options.freeze_head)
        state_weight = 0.5 ** (0.5 / self.num_positions)
        self.ratio = ((1 - state_weight**2) * hidden / 2) ** 0.5 / state_weight
        self.num_compared = options.loss_vocab_size or target.vocab_size
        self.frequent = None if frequent is None else torch.tensor(frequent)

    def predictions(self, batch: Batch) -> list[Prediction]:
        """Cross-entropy with the target's distribution over the tokens that are compared."""
        size = (self.target.hidden_size,)
        ids = self._compared(batch)
        output = self.head if ids is None else self.head[ids]
        with torch.no_grad():
            truth = self.target.logits(batch.final_states(*size, 1), ids).softmax(-1)
        state = F.rms_norm(batch.final_states(*size, 0), size, None, 1e-6) / 2**0.5
        predictions = []
        for step in range(self.num_positions):
            embedded = F.embedding(batch.known(step), self.emb) @ self.emb_map
            project = self.first if step == 0 else self.later
            mixed = project(state) + self.ratio * embedded
            normed = F.rms_norm(mixed, size, None, 1e-6)
            state = F.gelu(normed * self.ln_weight + self.ln_bias)
            rows, weights = truth_rows(batch, step), row_weights(batch, step)
            loss, best = linear_cross_entropy(state, output, truth, rows, weights)
            predictions.append(Prediction(loss, best if ids is None else ids[best]))
        return predictions

    def _compared(self, batch: Batch) -> Tensor | None:
        """The ids of this step's loss, the same ones for the same batch; None: all."""
        if self.frequent is None or not torch.is_grad_enabled():
            return None
        chosen = torch.zeros(self.target.vocab_size, dtype=torch.bool)
        chosen[self.frequent] = True
        # What is true must be among them.
        chosen[batch.tokens.flatten().cpu()] = True
        others = (~chosen).nonzero()[:, 0]
        draw = torch.Generator().manual_seed(int(batch.tokens.sum()))
        count = max(0, self.num_compared - int(chosen.sum()))
        chosen[others[torch.randperm(len(others), generator=draw)[:count]]] = True
        return chosen.nonzero()[:, 0].to(batch.tokens.device)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The embeddings are learned on as they are."""
        embedding = "speculator.emb.0.weight"
        super().load({name: tensor for name, tensor in tensors.items() if name != embedding})
        self.emb.copy_(tensors[embedding])
        nn.init.eye_(self.emb_map)

    def tensors(self) -> dict[str, Tensor]:
        """The published names; what is tied over positions is stored once."""
        tensors = {
            "emb.0.weight": self.emb @ self.emb_map,
            "proj.0.weight": self.first.weight,
            "ln.0.weight": self.ln_weight,
            "ln.0.bias": self.ln_bias,
            "head.0.weight": self.head,
        }
        if self.num_positions > 1:
            tensors["proj.1.weight"] = self.later.weight
        return {f"speculator.{name}": tensor for name, tensor in tensors.items()}

    def config(self) -> dict[str, Any]:
        """fms' config."""
        return {
            "architectures": ["MLPSpeculatorPreTrainedModel"],
            "model_type": "mlp_speculator",
            "vocab_size": self.target.vocab_size,
            "emb_dim": self.target.hidden_size,
            "inner_dim": self.target.hidden_size,
            "n_predict": self.num_positions,
            "top_k_tokens_per_head": [4] + [1] * (self.num_positions - 1),
            "n_candidates": 4,
            "tie_weights": True,
            "scale_input": True,
            "torch_dtype": "bfloat16",
        }
