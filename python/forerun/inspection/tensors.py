"""Names, types and shapes of a checkpoint's tensors, without reading the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from forerun.errors import CheckpointError
from forerun.inspection.pickles import PickledTensor, read_pickled
from forerun.json_files import read_json_object


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's type (as safetensors names it) and shape, and the file that it is in."""

    dtype: str
    shape: tuple[int, ...]
    file: str


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """The tensors of all `.safetensors` files of a directory, else of its `.bin` and `.pt` files.

    Raises:
        CheckpointError: no such file, one that is damaged or contradicts its index, or a name
            that two files have.
    """
    files = sorted(directory.glob("*.safetensors"))
    read = _read_safetensors
    if not files:
        files = pickle_files(directory)
        read = _read_torch
    if not files:
        raise CheckpointError(str(directory), "no weights", "a .safetensors, .bin or .pt file")
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, tensor in read(file):
            if name in tensors:
                where = f"in {tensors[name].file} and in {file.name}"
                raise CheckpointError(name, where, "each tensor in one file")
            tensors[name] = tensor
    _check_index(directory, tensors)
    return tensors


def pickle_files(directory: Path) -> list[Path]:
    """The files with weights that torch.save wrote."""
    files = sorted([*directory.glob("*.bin"), *directory.glob("*.pt")])
    return [file for file in files if file.name != "training_args.bin"]


def _check_index(directory: Path, tensors: dict[str, TensorInfo]) -> None:
    for index in directory.glob("*.index.json"):
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(str(index), "no weight_map", "a file for each tensor")
        for name, file in weight_map.items():
            if name not in tensors or tensors[name].file != file:
                raise CheckpointError(str(index), f"{name} in {file}", "tensors where it says")


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a directory."""
    return read_json_object(directory / "config.json")


def _read_safetensors(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    try:
        with safe_open(file, "numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                yield name, TensorInfo(part.get_dtype(), tuple(part.get_shape()), file.name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(file), str(error), "a whole safetensors file") from error


def _read_torch(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    for name, tensor in read_pickled(file).items():
        yield name, _info(tensor, file)


def _info(tensor: PickledTensor, file: Path) -> TensorInfo:
    return TensorInfo(tensor.storage.dtype, tensor.shape, file.name)
