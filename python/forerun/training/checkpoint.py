"""Writes a drafter's checkpoint, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from forerun.checkpoints.convert.pickles import files_beside
from forerun.checkpoints.inspection.tensors import read_tensors
from forerun.checkpoints.loading import as_safetensors
from forerun.training.heads import Head


def read_checkpoint(
    directory: Path, wanted: Collection[str] | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint; of `wanted`, where given, those that it has.

    Raises:
        CheckpointError: it has no weights, or damaged ones.
    """
    source = as_safetensors(directory)
    tensors: dict[str, torch.Tensor] = {}
    for name, info in read_tensors(source).items():
        if wanted is None or name in wanted:
            with safe_open(source / info.file, "pt") as opened:
                tensors[name] = opened.get_tensor(name)
    return tensors


def write_checkpoint(head: Head, directory: Path) -> None:
    """The drafter in its published format, in bfloat16; the other types stay.

    A head that lives in the target's checkpoint is written with all of it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    if head.in_target:
        tensors |= read_checkpoint(head.target.directory)
        for file in files_beside(head.target.directory):
            copy = directory / file.relative_to(head.target.directory)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(file, copy)
    for name, tensor in head.tensors().items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.bfloat16)
        tensors[name] = tensor.contiguous()
    weights = directory / "model.safetensors"
    unfinished = weights.with_suffix(".tmp")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    replace_text(directory / "config.json", json.dumps(head.config(), indent=2) + "\n")
    os.replace(unfinished, weights)


def replace_text(file: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    unfinished = file.with_name(file.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)
