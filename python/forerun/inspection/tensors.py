"""Names, types and shapes of a checkpoint's tensors, without reading the tensors or torch."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from forerun.errors import CheckpointError

# torch's storage classes, in the names of safetensors.
_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
}


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
        files = sorted([*directory.glob("*.bin"), *directory.glob("*.pt")])
        files = [file for file in files if file.name != "training_args.bin"]
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


def _check_index(directory: Path, tensors: dict[str, TensorInfo]) -> None:
    for index in directory.glob("*.index.json"):
        weight_map = _parse_json(index.read_bytes(), index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(str(index), "no weight_map", "a file for each tensor")
        for name, file in weight_map.items():
            if name not in tensors or tensors[name].file != file:
                raise CheckpointError(str(index), f"{name} in {file}", "tensors where it says")


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(str(path), str(error), "JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(str(path), type(value).__name__, "a JSON object")
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a directory."""
    path = directory / "config.json"
    try:
        return _parse_json(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(str(path), str(error.strerror), "a readable file") from error


def _read_safetensors(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    try:
        with safe_open(file, "numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                yield name, TensorInfo(part.get_dtype(), tuple(part.get_shape()), file.name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(file), str(error), "a whole safetensors file") from error


class _Storage(NamedTuple):
    dtype: str


class _ShapeUnpickler(pickle.Unpickler):
    """Rebuilds shapes alone and calls nothing that the file names."""

    def __init__(self, stream: Any, file: Path) -> None:
        super().__init__(stream)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        raise CheckpointError(str(self._file), f"{module}.{name}", "tensors and nothing else")

    def persistent_load(self, pid: Any) -> _Storage:
        if isinstance(pid, tuple) and len(pid) >= 2 and isinstance(pid[1], _Storage):
            return pid[1]
        raise CheckpointError(str(self._file), "an unknown storage", "tensors")

    def _rebuild_tensor(self, storage: _Storage, _offset: int, shape: Any, *_: Any) -> TensorInfo:
        return TensorInfo(storage.dtype, tuple(shape), self._file.name)


def _read_torch(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    try:
        with zipfile.ZipFile(file) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(name) as stream:
                state = _ShapeUnpickler(stream, file).load()
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            str(file), "no zip archive", "a whole file of torch >= 1.6"
        ) from error
    except Exception as error:  # a pickle that was tampered with fails in any way it likes
        raise CheckpointError(
            str(file), repr(error), "a state dict that torch.save wrote"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, TensorInfo) for key, value in state.items()
    ):
        raise CheckpointError(str(file), type(state).__name__, "a state dict: tensors by name")
    yield from state.items()
