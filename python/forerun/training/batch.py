"""Examples side by side, and the rows that a drafter predicts from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forerun.training.data import Example
from forerun.training.target import StateStore


@dataclass
class Batch:
    """Examples padded at their ends, and their rows.

    A row is a moment of decoding: the target has written x_{t+1}, the drafter reads the
    target's states up to position t, and its prediction i is of x_{t+2+i}. An example has a row
    for each t from the position before its answer on, as long as there is something to predict.

    Attributes:
        tokens: [batch, length + num_positions + 1].
        states: [batch, length, width]: what StateStore gives.
        example: [rows], the row's index into the batch.
        position: [rows], the row's t.
        slot: [rows], the row's index when the rows of each example are padded to `most_rows`.
        remaining: [rows], how many predictions can be judged; an example's rows are consecutive, so
            that the target's state for prediction i of row r is that of prediction 0 of row r + i.
        most_rows: rows of the example that has most.
        best: [rows], the target's most probable token for prediction 0; empty unless the
            store keeps it.
    """

    tokens: Tensor
    states: Tensor
    example: Tensor
    position: Tensor
    slot: Tensor
    remaining: Tensor
    most_rows: int
    best: Tensor

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Positions that have states."""
        return self.states.shape[1]

    @property
    def flat_rows(self) -> Tensor:
        """Indices of the rows into [batch * length]."""
        return self.example * self.length + self.position

    def known(self, step: int) -> Tensor:
        """[rows]: x_{t+1+step}, which prediction `step` follows."""
        return self.tokens[self.example, self.position + 1 + step]

    def truth(self, step: int) -> Tensor:
        """[rows]: x_{t+2+step}, the token of prediction `step`; padding where it has ended."""
        return self.tokens[self.example, self.position + 2 + step]

    def final_states(self, hidden_size: int, ahead: int) -> Tensor:
        """[rows, hidden]: the target's final state of position t + ahead; ahead is 0 or 1."""
        return self.states[self.example, self.position + ahead, -hidden_size:]


def make_batch(examples: list[Example], store: StateStore, num_positions: int) -> Batch:
    """Puts examples side by side."""
    states = store.get(examples)
    length = states.shape[1]
    # One more than the last prediction: a row's chain runs past its example's end.
    tokens = torch.zeros(len(examples), length + num_positions + 1, dtype=torch.long)
    example, position, slot, remaining = [], [], [], []
    counts = [len(e) - 1 - e.num_prompt_tokens for e in examples]
    for index, (e, count) in enumerate(zip(examples, counts, strict=True)):
        tokens[index, : len(e)] = torch.tensor(e.tokens)
        ordinal = torch.arange(count)
        example.append(torch.full((count,), index))
        position.append(e.num_prompt_tokens - 1 + ordinal)
        slot.append(index * max(counts) + ordinal)
        remaining.append(count - ordinal)
    device = states.device
    rows = [torch.cat(parts).to(device) for parts in (example, position, slot, remaining)]
    best = torch.tensor(store.best(examples), dtype=torch.long, device=device)
    return Batch(
        tokens=tokens.to(device),
        states=states,
        example=rows[0],
        position=rows[1],
        slot=rows[2],
        remaining=rows[3],
        most_rows=max(counts),
        best=best,
    )
