"""Sampling and verification in torch and numpy, as docs/sampling.md and docs/acceptance.md say.

Everything in float64 and by full sorts. Nothing here is shared with the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

ACCEPTANCE, RESIDUAL = 1, 2  # what uniform numbers are for
ROOT = -1


class BrokenRow(Exception):
    """No token can be sampled from a row."""


@dataclass
class Rule:
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    acceptance_method: str = "coupled"


@dataclass
class Tree:
    tokens: list[int]
    parents: list[int]
    probs: torch.Tensor | None = None  # [tokens, vocab] float32

    def children(self, node: int) -> list[int]:
        return [i for i, parent in enumerate(self.parents) if parent == node]


def philox(seed: int, low: np.ndarray, high: int) -> np.ndarray:
    """Philox 4x32-10 of counters (low, high): words [counters, 4]."""
    mask = np.uint64(0xFFFFFFFF)
    low = low.astype(np.uint64)
    counter = [low & mask, low >> np.uint64(32)]
    counter += [np.full_like(low, high & 0xFFFFFFFF), np.full_like(low, high >> 32)]
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first = counter[0] * np.uint64(0xD2511F53)
        second = counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (second >> np.uint64(32)) ^ counter[1] ^ np.uint64(keys[0]),
            second & mask,
            (first >> np.uint64(32)) ^ counter[3] ^ np.uint64(keys[1]),
            first & mask,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(counter, axis=1)


def gumbel_noise(seed: int, output_index: int, vocab: int) -> torch.Tensor:
    words = philox(seed, np.arange((vocab + 3) // 4), output_index).reshape(-1)[:vocab]
    uniform = torch.from_numpy((words.astype(np.float64) + 0.5) * 2.0**-32)
    return -torch.log(-torch.log(uniform))


def uniform_noise(seed: int, purpose: int, output_index: int, node: int) -> float:
    words = philox(seed, np.array([node]), purpose << 32 | output_index)[0]
    bits = int(words[0]) << 32 | int(words[1])
    return (bits >> 11) * 2.0**-53


def check_row(row: torch.Tensor) -> None:
    for token in torch.nonzero(torch.isnan(row) | (row == torch.inf)).flatten().tolist():
        raise BrokenRow(f"the logit of token {token} is {row[token].item():f}")
    if bool((row == -torch.inf).all()):
        raise BrokenRow("no token can be sampled: every logit is -infinity or ruled out")


def kept_weights(row: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [vocab], 0 for tokens that are not kept, and which are kept."""
    check_row(row)
    scaled = (row - row.max()) / rule.temperature
    weights = torch.round(torch.exp(scaled) * 2.0**32) * 2.0**-32
    order = torch.sort(row, descending=True, stable=True).indices
    order = order[row[order] > -torch.inf]
    if rule.min_p > 0:
        order = order[row[order] >= row.max() + np.log(rule.min_p) * rule.temperature]
    if rule.top_k > 0:
        order = order[: rule.top_k]
    if rule.top_p < 1:
        before = torch.cumsum(weights[order], 0) - weights[order]
        order = order[before < rule.top_p * weights[order].sum()]
    kept = torch.zeros(len(row), dtype=torch.bool)
    kept[order] = True
    return torch.where(kept, weights, 0.0), kept


def sample_token(row: torch.Tensor, rule: Rule, output_index: int) -> int:
    """The token of a row [vocab] in float64."""
    if rule.temperature == 0:
        check_row(row)
        return int(torch.nonzero(row == row.max())[0])
    _, kept = kept_weights(row, rule)
    score = (row - row.max()) / rule.temperature
    score = score + gumbel_noise(rule.seed, output_index, len(row))
    return int(torch.where(kept, score, -torch.inf).argmax())


@dataclass
class Walk:
    """One request: logits [nodes + 1, vocab] in float64."""

    logits: torch.Tensor
    tree: Tree
    rule: Rule
    output_index: int
    tokens: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    error: str = ""

    def run(self) -> Walk:
        try:
            if self.rule.acceptance_method == "coupled" or self.rule.temperature == 0:
                self.sample_and_compare()
            else:
                self.visit(ROOT, 1.0)
        except BrokenRow as error:
            self.error = str(error)
        return self

    def sample(self, node: int) -> int:
        return sample_token(self.logits[node + 1], self.rule, self.output_index + len(self.nodes))

    def toss(self, node: int, probability: float) -> bool:
        noise = uniform_noise(self.rule.seed, ACCEPTANCE, self.output_index, node + 1)
        return noise < probability

    def sample_and_compare(self) -> None:
        node: int | None = ROOT
        while node is not None:
            token = self.sample(node)
            self.tokens.append(token)
            same = [c for c in self.tree.children(node) if self.tree.tokens[c] == token]
            node = same[0] if same else None
            self.nodes += same[:1]

    def visit(self, node: int, weight: float) -> bool:
        try:
            masses, _ = kept_weights(self.logits[node + 1], self.rule)
        except BrokenRow:
            if not self.toss(node, weight):
                return False
            raise
        whole = masses / masses.sum()
        target = weight * whole
        children = self.tree.children(node)
        draft = self.draft_weights(children, len(masses))
        is_whole = True
        for child in children:
            token = self.tree.tokens[child]
            if draft is None:
                drawn_from = torch.zeros_like(target)
                drawn_from[token] = 1.0
            elif draft.sum() == 0:
                break
            else:
                drawn_from = draft / draft.sum()
                draft = draft.clone()
                draft[token] = 0.0
            drafted = float(drawn_from[token])
            share = min(1.0, float(target[token]) / drafted) if drafted > 0 else 0.0
            if share > 0 and self.descend(child, share):
                return True
            if draft is None and share == 0:
                continue
            # Masses are rounded to multiples of 2^-52.
            rest = torch.clamp(target - drawn_from, min=0.0) + 1.0 - 1.0
            left = float(rest.sum())
            if left == 0 and weight == 1.0:
                # Draft and target differ by roundings only.
                is_whole, target = True, whole
                continue
            is_whole = False
            weight = left / (1.0 - weight + left)
            if left == 0:
                return False
            target = rest * (weight / left)
        if not self.toss(node, weight):
            return False
        self.tokens.append(self.sample(node) if is_whole else self.draw(target))
        return True

    def draft_weights(self, children: list[int], vocab: int) -> torch.Tensor | None:
        if self.tree.probs is None or not children:
            return None
        row = self.tree.probs[children[0]].to(torch.float64)
        return torch.round(row * 2.0**32) * 2.0**-32

    def descend(self, child: int, share: float) -> bool:
        if self.rule.acceptance_method == "rejection":
            if not self.toss(child, share):
                return False
            share = 1.0
        self.nodes.append(child)
        self.tokens.append(self.tree.tokens[child])
        if self.visit(child, share):
            return True
        self.nodes.pop()
        self.tokens.pop()
        return False

    def draw(self, masses: torch.Tensor) -> int:
        noise = uniform_noise(self.rule.seed, RESIDUAL, self.output_index, 0)
        return int((torch.cumsum(masses, 0) > float(masses.sum()) * noise).to(torch.int8).argmax())
