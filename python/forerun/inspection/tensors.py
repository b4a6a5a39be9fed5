"""Names, types and shapes of a checkpoint's tensors, without reading the tensors or torch."""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from forerun.errors import CheckpointError

_MAX_HEADER_BYTES = 100 << 20
_SAFETENSORS_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
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

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _SAFETENSORS_BYTES.get(self.dtype, 1)


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
    num_bytes = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= header_bytes <= min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(str(file), f"{num_bytes} bytes", "a whole safetensors file")
        header = _parse_json(stream.read(header_bytes), file)
    data_bytes = num_bytes - 8 - header_bytes
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            tensor = TensorInfo(entry["dtype"], tuple(entry["shape"]), file.name)
            begin, end = entry["data_offsets"]
            is_sound = (
                all(type(size) is int and size >= 0 for size in (*tensor.shape, begin, end))
                and end - begin == tensor.num_bytes
                and tensor.dtype in _SAFETENSORS_BYTES
            )
        except (KeyError, TypeError, ValueError):
            is_sound = False
        if not is_sound:
            raise CheckpointError(
                f"{file}: {name}", json.dumps(entry), "a dtype, a shape and offsets that agree"
            )
        if end > data_bytes:
            raise CheckpointError(
                f"{file}: {name}", f"bytes up to {end} of {data_bytes}", "a whole file"
            )
        yield name, tensor


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
