"""A checkpoint in files of torch.save -> the same in safetensors, without torch."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from forerun.checkpoints.inspection.pickles import read_data, read_state_dicts
from forerun.checkpoints.inspection.tensors import weight_files
from forerun.checkpoints.inspection.unpickling import PickledTensor
from forerun.errors import CheckpointError
from forerun.util.json_files import read_bytes

# What a model has beside its weights.
_BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")


def files_beside(directory: Path) -> list[Path]:
    """The files of a model that are not its weights: config.json, the tokenizer's, templates."""
    try:
        files = [
            *(file for file in directory.iterdir() if file.suffix in _BESIDE_WEIGHTS),
            *directory.glob("additional_chat_templates/*.jinja"),
        ]
    except OSError as error:
        raise CheckpointError(
            str(directory), str(error.strerror), "a readable directory"
        ) from error
    return sorted(file for file in files if file.is_file() and ".index." not in file.name)


def write_as_safetensors(directory: Path, target: Path) -> None:
    """Writes the tensors of `directory` bit by bit, and what is beside them, to a new directory.

    It appears whole or not at all.

    Raises:
        CheckpointError: a file is damaged.
        OSError: the new directory cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        for name, tensors in read_state_dicts(directory, weight_files(directory)).items():
            _write(directory / name, tensors, unfinished / f"{name}.safetensors")
        for file in files_beside(directory):
            copy = unfinished / file.relative_to(directory)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(read_bytes(file))
        os.replace(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write(file: Path, tensors: dict[str, PickledTensor], out: Path) -> None:
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + _num_bytes(tensor)
        header[name] = {
            "dtype": tensor.storage.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():  # one after the other: never all in memory
            [data] = read_data(file, [tensor])
            stream.write(data.tobytes())


def _num_bytes(tensor: PickledTensor) -> int:
    size = tensor.storage.element_bytes
    for length in tensor.shape:
        size *= length
    return size
