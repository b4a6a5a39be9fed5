"""The weights that a run starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.training.checkpoint import read_checkpoint
from forerun.training.heads import Head
from forerun.training.options import TrainOptions
from forerun.util.interrupts import pass_on_interrupt
from forerun.util.json_files import read_json_object

# Not weights: these tensors say which tokens can be drafted.
_VOCABULARY = ("d2t", "t2d", "token_map")
# What a config says of them.
_VOCABULARY_SIZES = ("draft_vocab_size", "truncated_vocab_size")


class Start:
    """A drafter's checkpoint, in the format that training writes."""

    def __init__(self, directory: Path) -> None:
        """Reads the weights."""
        self._directory = directory
        try:
            self._tensors = read_checkpoint(directory)
            self._config = read_json_object(directory / "config.json")
        except Exception as error:  # of any reader
            pass_on_interrupt(error)
            raise CheckpointError("start", str(error), "a checkpoint with safetensors") from error
        self._vocabulary: list[int] | None = None
        if (offsets := self._tensors.get("d2t")) is not None:
            self._vocabulary = (offsets + torch.arange(len(offsets))).tolist()
        elif (ids := self._tensors.get("token_map")) is not None:
            self._vocabulary = ids.tolist()

    def vocabulary_for(self, vocab_size: int, options: TrainOptions) -> list[int] | None:
        """The ids that can be drafted, None for all.

        Raises:
            InvalidArgumentError: they are not the target's, or not what the options ask for.
        """
        ids, size = self._vocabulary, options.draft_vocab_size
        if ids is None and (options.method == "eagle3" or size is not None):
            self._refuse("d2t or token_map", "missing", "a drafter with a draft vocabulary")
        if ids is not None and not 0 <= min(ids) <= max(ids) < vocab_size:
            self._refuse("the greatest draft token", max(ids), f"below {vocab_size}")
        if ids is not None and not options.share_head and size not in (None, len(ids)):
            self._refuse("draft_vocab_size", len(ids), size)
        return ids

    @torch.no_grad()
    def load_into(self, head: Head) -> None:
        """Puts the weights into a head of the same kind, shape and target.

        Raises:
            InvalidArgumentError: it is another; the message names the field or the tensor.
        """
        for name, value in head.config().items():
            if name not in _VOCABULARY_SIZES and self._config.get(name) != value:
                self._refuse(name, self._config.get(name), value)
        own = {n: t for n, t in head.tensors().items() if n not in _VOCABULARY}
        found = {n: t for n, t in self._tensors.items() if n not in _VOCABULARY}
        if head.in_target:
            found = {n: found[n] for n in own if n in found}
        for name in sorted(own.keys() | found.keys()):
            mine, theirs = _shape(own.get(name)), _shape(found.get(name))
            if mine != theirs:
                self._refuse(name, theirs, mine)
        head.load({name: found[name] for name in own})

    def _refuse(self, name: str, theirs: object, mine: object) -> None:
        found = f"{name} is {theirs} in {self._directory}"
        raise InvalidArgumentError("start", found, f"{mine}, as model and options say")


def _shape(tensor: Any) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
