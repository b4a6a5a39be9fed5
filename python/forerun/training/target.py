"""The target in torch: what heads read of it, kept on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from forerun.errors import CheckpointError
from forerun.training.data import Example

_FEATURE_BATCH = 8


class Target:
    """A frozen causal language model of transformers, in float32."""

    def __init__(self, directory: Path) -> None:
        """Loads the model; any that transformers can."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.directory = directory
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.model = model.base_model
        self.embedding: Tensor = model.get_input_embeddings().weight.data
        self.lm_head: Tensor = model.get_output_embeddings().weight.data
        self.final_norm: Tensor = self.model.norm.weight.data
        self.hidden_size: int = self.embedding.shape[1]
        self.vocab_size: int = self.embedding.shape[0]
        self.num_layers: int = model.config.num_hidden_layers
        self.hf_config = model.config

    @property
    def rope_theta(self) -> float:
        """The base of the target's rotary embedding."""
        parameters = getattr(self.hf_config, "rope_parameters", None) or {}
        return float(parameters.get("rope_theta") or self.config.get("rope_theta", 10000.0))

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text."""
        value = self.hf_config.eos_token_id
        return [] if value is None else list(value) if isinstance(value, list) else [value]

    @torch.no_grad()
    def features(self, tokens: Tensor, layer_ids: list[int]) -> tuple[Tensor, Tensor]:
        """The residual stream before some layers, side by side, and the final normed state.

        Args:
            tokens: [batch, length].
            layer_ids: k of the state behind k layers, below the number of layers.

        Returns:
            [batch, length, len(layer_ids) * hidden] and [batch, length, hidden].
        """
        out = self.model(tokens, output_hidden_states=True, use_cache=False)
        taps = [out.hidden_states[k] for k in layer_ids]
        final = out.last_hidden_state
        return (torch.cat(taps, -1) if taps else final[..., :0]), final


@dataclass
class Sequence:
    """An example with its features, [length, width] float16 on disk."""

    example: Example
    taps: np.ndarray
    final: np.ndarray

    def __len__(self) -> int:
        return len(self.example.tokens)


class FeatureCache:
    """Features of examples in one file of float16, which a later run finds again."""

    def __init__(self, file: Path, target: Target, layer_ids: list[int]) -> None:
        """`layer_ids` as Target.features takes them."""
        self._file, self._target, self._layer_ids = file, target, layer_ids
        self._width = (len(layer_ids) + 1) * target.hidden_size

    def load(self, examples: list[Example]) -> list[Sequence]:
        """The examples with their features, computed where the file does not have them."""
        lengths = [len(example.tokens) for example in examples]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        index = self._file.with_suffix(".json")
        key = {
            "model": str(self._target.directory.resolve()),
            "layer_ids": self._layer_ids,
            "tokens": [hash(example.tokens) for example in examples],
        }
        shape = (offsets[-1], self._width)
        if not index.is_file() or json.loads(index.read_text()) != key:
            index.unlink(missing_ok=True)
            memory = np.memmap(self._file, np.float16, "w+", shape=shape)
            self._compute(examples, offsets, memory)
            memory.flush()
            index.write_text(json.dumps(key))
        memory = np.memmap(self._file, np.float16, "r", shape=shape)
        num_taps = len(self._layer_ids) * self._target.hidden_size
        return [
            Sequence(example, memory[begin:end, :num_taps], memory[begin:end, num_taps:])
            for example, begin, end in zip(examples, offsets, offsets[1:], strict=False)
        ]

    def _compute(self, examples: list[Example], offsets: list[int], memory: np.ndarray) -> None:
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
        bar = tqdm(total=offsets[-1], desc="Reading the target", unit=" tokens")
        with bar:
            for begin in range(0, len(order), _FEATURE_BATCH):
                batch = order[begin : begin + _FEATURE_BATCH]
                length = max(len(examples[i].tokens) for i in batch)
                tokens = torch.zeros(len(batch), length, dtype=torch.long)
                for row, i in enumerate(batch):
                    tokens[row, : len(examples[i].tokens)] = torch.tensor(examples[i].tokens)
                taps, final = self._target.features(tokens, self._layer_ids)
                both = torch.cat([taps, final], -1)
                for row, i in enumerate(batch):
                    count = len(examples[i].tokens)
                    values = both[row, :count].to(torch.float16)
                    if not torch.isfinite(values).all():
                        raise CheckpointError(
                            "hidden states", "beyond float16's range", "other layer_ids"
                        )
                    memory[offsets[i] : offsets[i] + count] = values.numpy()
                    bar.update(count)


@dataclass
class Batch:
    """Examples side by side, padded with zeros behind.

    Attributes:
        tokens: [batch, length + most positions].
        taps: [batch, length, width].
        final: [batch, length, hidden], normed.
        answers: per example the first and the last token position, exclusive, of its answer.
    """

    tokens: Tensor
    taps: Tensor
    final: Tensor
    answers: list[tuple[int, int]]

    @property
    def length(self) -> int:
        """Positions that have features."""
        return self.taps.shape[1]

    def rows(self, step: int) -> tuple[Tensor, Tensor]:
        """Where a head's guess at `step` is about a token of an answer.

        The row of position t guesses the token t + 2 + step; the target's own distribution of it
        comes from its final state of position t + 1 + step.

        Returns:
            Flat indices into [batch, length] of the guesses' rows and of the final states.
        """
        rows, states = [], []
        for index, (begin, end) in enumerate(self.answers):
            state = torch.arange(max(begin - 1, step + 1), end - 1)
            states.append(index * self.length + state)
            rows.append(index * self.length + state - 1 - step)
        return torch.cat(rows), torch.cat(states)


def make_batch(sequences: list[Sequence], num_steps: int) -> Batch:
    """Puts sequences side by side."""
    length = max(map(len, sequences))
    first = sequences[0]
    tokens = torch.zeros(len(sequences), length + num_steps + 1, dtype=torch.long)
    taps = torch.zeros(len(sequences), length, first.taps.shape[1])
    final = torch.zeros(len(sequences), length, first.final.shape[1])
    for row, sequence in enumerate(sequences):
        count = len(sequence)
        tokens[row, :count] = torch.tensor(sequence.example.tokens)
        taps[row, :count] = torch.from_numpy(sequence.taps.astype(np.float32))
        final[row, :count] = torch.from_numpy(sequence.final.astype(np.float32))
    answers = [(s.example.num_prompt_tokens, len(s)) for s in sequences]
    return Batch(tokens, taps, final, answers)
