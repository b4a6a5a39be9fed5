"""Names, types and shapes of a checkpoint's tensors, without reading the tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from forerun import _core
from forerun.checkpoints.inspection.pickles import read_state_dicts
from forerun.errors import CheckpointError
from forerun.util.json_files import check_is_file, read_json_object

_BLOCK_TYPES = _core.block_types()
_BLOCKS_KEY = "gguf:"  # before the name of a tensor, in the metadata of its file
_MOST_ROW_BYTES = 2**31 - 1


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's type and the shape of its weights, and the file that it is in.

    The type is as safetensors names it, or GGUF for a tensor of its blocks.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str


def weight_files(directory: Path) -> _core.WeightFiles:
    """Which files of a directory hold its weights, as the engine takes them.

    Raises:
        CheckpointError: there are none, no such directory, or a damaged index.
    """
    files = _core.find_weight_files(os.fsencode(directory))
    if not files.names:
        raise CheckpointError(str(directory), "no weights", "a .safetensors, .bin or .pt file")
    return files


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """The tensors of a directory's weight files.

    Raises:
        CheckpointError: no such file, one that is damaged or contradicts its index, or a name
            that two files have.
    """
    files = weight_files(directory)
    tensors: dict[str, TensorInfo] = {}
    listed = files.file_of_tensor
    for name, tensor in _read_all(directory, files):
        if files.index_name and listed.get(name) != tensor.file:
            continue
        if name in tensors:
            where = f"in {tensors[name].file} and in {tensor.file}"
            raise CheckpointError(name, where, "each tensor in one file")
        tensors[name] = tensor
    for name, file in listed.items():
        if name not in tensors:
            index = str(directory / files.index_name)
            raise CheckpointError(index, f"{name} in {file}", "tensors where it says")
    return tensors


def _read_all(directory: Path, files: _core.WeightFiles) -> Iterator[tuple[str, TensorInfo]]:
    if not files.are_pickled:
        for file in files.names:
            yield from _read_safetensors(directory / file)
        return
    for file, tensors in read_state_dicts(directory, files).items():
        for name, tensor in tensors.items():
            yield name, TensorInfo(tensor.storage.dtype, tensor.shape, file)


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a directory."""
    return read_json_object(directory / "config.json")


def _of_blocks(field: str, kind: str, tensors: dict[str, TensorInfo], name: str) -> TensorInfo:
    """A tensor whose bytes are blocks of GGUF's, by the shape of its weights."""
    if kind not in _BLOCK_TYPES:
        raise CheckpointError(field, kind, "a type of blocks, such as Q4_0")
    if name not in tensors:
        raise CheckpointError(field, kind, "the name of a tensor in this file")
    num_weights, num_bytes = _BLOCK_TYPES[kind]
    dtype, shape, file = astuple(tensors[name])
    if dtype != "U8" or len(shape) != 2 or shape[1] > _MOST_ROW_BYTES or shape[1] % num_bytes:
        expected = f"this for a U8 tensor with rows in multiples of {num_bytes} bytes"
        raise CheckpointError(field, kind, expected)
    return TensorInfo(kind, (shape[0], shape[1] // num_bytes * num_weights), file)


def _read_safetensors(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    check_is_file(file)
    try:
        with safe_open(file, "numpy") as opened:
            tensors = {}
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                shape = tuple(part.get_shape())
                tensors[name] = TensorInfo(part.get_dtype(), shape, file.name)
            for key, kind in (opened.metadata() or {}).items():
                if key.startswith(_BLOCKS_KEY):
                    name = key.removeprefix(_BLOCKS_KEY)
                    tensors[name] = _of_blocks(f"{file}: __metadata__: {key}", kind, tensors, name)
        yield from tensors.items()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(file), str(error), "a whole safetensors file") from error
