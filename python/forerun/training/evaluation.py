"""How far a drafter's predictions are accepted, on examples that it was not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forerun.training.batch import Batch, make_batch
from forerun.training.data import Example, make_batches
from forerun.training.heads import Head
from forerun.training.target import StateStore


@dataclass(frozen=True)
class Acceptance:
    """How good the predictions are.

    A prediction is right if it is the answer's token. For an answer that the target wrote
    greedily, or with draws that the engine repeats, this is what verification accepts.

    Attributes:
        accuracy: share of right predictions by position, given the answer's tokens before.
        conditional: share of right predictions by position where all before were right.
        expected_length: tokens per target pass, the target's own included, if every moment of the
            answers were as likely to be drafted from.
        chain_length: the same where drafts follow each other as in decoding.
        num_examples: how many examples were judged.
    """

    accuracy: tuple[float, ...]
    conditional: tuple[float, ...]
    expected_length: float
    chain_length: float
    num_examples: int

    def __str__(self) -> str:
        def rates(values: tuple[float, ...]) -> str:
            return " ".join(f"{value:.3f}" for value in values)

        return (
            f"on {self.num_examples} held-out examples, right by position: {rates(self.accuracy)}; "
            f"accepted where those before were: {rates(self.conditional)}; mean acceptance length "
            f"{self.chain_length:.2f} (of all positions {self.expected_length:.2f})"
        )


@torch.no_grad()
def evaluate(
    head: Head, store: StateStore, examples: list[Example], batch_tokens: int
) -> Acceptance | None:
    """Judges a drafter on examples; None where there are none."""
    positions = head.num_positions
    right, judged = torch.zeros(positions), torch.zeros(positions)
    accepted, reached = torch.zeros(positions), torch.zeros(positions)
    full_length, num_full, num_tokens, num_passes = 0.0, 0, 0, 0
    for examples_of_batch in make_batches(examples, batch_tokens):
        batch = make_batch(examples_of_batch, store, positions)
        hits = hits_of(head, batch)
        counted = judged_rows(batch, positions)
        streak = hits.cumprod(0)
        right += hits.sum(1)
        judged += counted.sum(1)
        accepted += streak.sum(1)
        before = torch.cat([torch.ones_like(streak[:1]), streak[:-1]])
        reached += (before * counted).sum(1)
        is_full = counted[-1] > 0
        full_length += float((1 + streak[:, is_full].sum(0)).sum())
        num_full += int(is_full.sum())
        for lengths in accepted_by_example(streak, batch):
            num_tokens += len(lengths)
            num_passes += count_passes(lengths)
    if not num_passes:
        return None
    return Acceptance(
        accuracy=tuple((right / judged.clamp(min=1)).tolist()),
        conditional=tuple((accepted / reached.clamp(min=1)).tolist()),
        expected_length=full_length / num_full if num_full else math.nan,
        chain_length=num_tokens / num_passes,
        num_examples=len(examples),
    )


def hits_of(head: Head, batch: Batch) -> Tensor:
    """[positions, rows]: 1 where a prediction is right, 0 where not or where there is no token."""
    predictions = head.predictions(batch)
    hits = []
    for step in range(head.num_positions):
        if head.reads_its_drafts:
            tokens, row_step = predictions[step].tokens, step
            right = tokens == batch.truth(row_step)
        else:
            first = predictions[0].tokens == batch.truth(0)
            right = torch.cat([first[step:], first.new_zeros(min(step, len(first)))])
        hits.append(right[: len(batch.remaining)].float() * (batch.remaining > step))
    return torch.stack(hits).cpu()


def judged_rows(batch: Batch, positions: int) -> Tensor:
    """[positions, rows]: 1 where there is a token to compare a prediction with."""
    steps = torch.arange(positions, device=batch.remaining.device)
    return (batch.remaining > steps[:, None]).float().cpu()


def accepted_by_example(streak: Tensor, batch: Batch) -> list[list[int]]:
    """How many predictions are right from each row, for each example."""
    lengths = streak.sum(0).long().tolist()
    result: list[list[int]] = [[] for _ in range(batch.num_examples)]
    for example, length in zip(batch.example.tolist(), lengths, strict=True):
        result[example].append(length)
    return result


def count_passes(accepted: list[int]) -> int:
    """Target passes for an answer, drafting again after the tokens of each pass.

    Args:
        accepted: by row, how many predictions are right.
    """
    row, passes = 0, 0
    while row < len(accepted):
        row += accepted[row] + 1
        passes += 1
    return passes
