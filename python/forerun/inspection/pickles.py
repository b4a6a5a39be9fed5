"""Tensors in files of torch.save, without torch and without running what a file names."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from forerun.errors import CheckpointError

# torch's storage classes: the type in the names of safetensors, and an element's bytes.
_STORAGES = {
    "BoolStorage": ("BOOL", 1),
    "ByteStorage": ("U8", 1),
    "CharStorage": ("I8", 1),
    "ShortStorage": ("I16", 2),
    "IntStorage": ("I32", 4),
    "LongStorage": ("I64", 8),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "FloatStorage": ("F32", 4),
    "DoubleStorage": ("F64", 8),
}


class _StorageType(NamedTuple):
    dtype: str
    element_bytes: int


@dataclass(frozen=True)
class Storage:
    """Elements of one type in a file of their own within the archive."""

    dtype: str
    element_bytes: int
    key: str
    num_elements: int


@dataclass(frozen=True)
class PickledTensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Rebuilds views of storages and calls nothing else that the file names."""

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
            return _StorageType(*_STORAGES[name])
        if (module, name) == ("torch", "Size"):
            return tuple
        raise CheckpointError(str(self._file), f"{module}.{name}", "tensors and nothing else")

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", _StorageType() as kind, str(key), _, int(size), *_) if size >= 0:
                return Storage(*kind, key, size)
        raise CheckpointError(str(self._file), "an unknown storage", "tensors")

    def _rebuild_tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
    ) -> PickledTensor:
        shape, strides = tuple(shape), tuple(strides)
        numbers = (offset, *shape, *strides)
        is_sound = (
            isinstance(storage, Storage)
            and len(shape) == len(strides)
            and all(type(number) is int and number >= 0 for number in numbers)
        )
        size = math.prod(shape)
        end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=False)) + 1
        if not is_sound or (size > 0 and max(end, size) > storage.num_elements):
            raise CheckpointError(
                str(self._file), f"a tensor of shape {list(shape)}", "tensors within their storage"
            )
        return PickledTensor(storage, offset, shape, strides)


def read_pickled(file: Path) -> dict[str, PickledTensor]:
    """The tensors of a state dict, without their data.

    Raises:
        CheckpointError: the file is damaged, or holds more than tensors by name.
    """

    def read(archive: zipfile.ZipFile) -> Any:
        [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        with archive.open(name) as stream:
            return _Unpickler(stream, file).load()

    state = _with_archive(file, read)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, PickledTensor) for key, value in state.items()
    ):
        raise CheckpointError(str(file), type(state).__name__, "a state dict: tensors by name")
    return state


def read_data(file: Path, tensors: Iterable[PickledTensor]) -> list[npt.NDArray[Any]]:
    """The elements of tensors of a file, as unsigned integers of their width.

    Raises:
        CheckpointError: the data is damaged or not all there.
    """
    wanted = list(tensors)

    def read(archive: zipfile.ZipFile) -> list[npt.NDArray[Any]]:
        [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            order = archive.read(f"{root}byteorder")
            if order != b"little":
                raise CheckpointError(str(file), f"byte order {order!r}", "b'little'")
        return [_elements(archive, root, file, tensor) for tensor in wanted]

    data: list[npt.NDArray[Any]] = _with_archive(file, read)
    return data


def _elements(
    archive: zipfile.ZipFile, root: str, file: Path, tensor: PickledTensor
) -> npt.NDArray[Any]:
    storage = tensor.storage
    entry = archive.getinfo(f"{root}data/{storage.key}")
    size = storage.num_elements * storage.element_bytes
    if entry.file_size != size or entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{file}: {entry.filename}", f"{entry.file_size} bytes", f"{size} bytes, uncompressed"
        )
    flat = np.frombuffer(archive.read(entry), f"<u{storage.element_bytes}")
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :],
        tensor.shape,
        [step * storage.element_bytes for step in tensor.strides],
        writeable=False,
    )
    return np.ascontiguousarray(view)


def _with_archive(file: Path, read: Callable[[zipfile.ZipFile], Any]) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            return read(archive)
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            str(file), f"a damaged file ({error})", "a whole file of torch >= 1.6"
        ) from error
    except Exception as error:  # a pickle that was tampered with fails in any way it likes
        raise CheckpointError(
            str(file), repr(error), "a state dict that torch.save wrote"
        ) from error
