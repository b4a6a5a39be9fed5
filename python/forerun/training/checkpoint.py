"""Writes a drafter's checkpoint, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from forerun.training.heads import Head

# What a target's checkpoint has beside its weights.
_BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")


def write_checkpoint(head: Head, directory: Path) -> None:
    """The drafter in its published format, in bfloat16; the other types stay.

    A head that lives in the target's checkpoint is written with all of it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    if head.in_target:
        for file in sorted(head.target.directory.glob("*.safetensors")):
            tensors |= load_file(file)
        for file in head.target.directory.iterdir():
            if file.suffix in _BESIDE_WEIGHTS and not file.name.endswith(".index.json"):
                shutil.copy(file, directory / file.name)
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
