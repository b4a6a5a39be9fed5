"""A checkpoint in files of torch.save -> the same in safetensors, without torch."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from forerun.inspection.pickles import PickledTensor, read_data, read_pickled
from forerun.inspection.tensors import pickle_files


def write_as_safetensors(directory: Path, target: Path) -> None:
    """Writes the tensors of `directory` bit by bit, and its config.json, to a new directory.

    It appears whole or not at all.

    Raises:
        CheckpointError: a file is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        for file in pickle_files(directory):
            _write(file, unfinished / f"{file.name}.safetensors")
        shutil.copyfile(directory / "config.json", unfinished / "config.json")
        os.replace(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write(file: Path, out: Path) -> None:
    tensors = read_pickled(file)
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
