"""Tensors in files of torch.save, without torch and without running what a file names."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forerun import _core
from forerun.checkpoints.inspection.unpickling import (
    NotAStateDictError,
    PickledTensor,
    unpickle,
)
from forerun.errors import CheckpointError
from forerun.util.interrupts import pass_on_interrupt
from forerun.util.json_files import check_is_file

_LOGGER = logging.getLogger("forerun")
# Of names, shapes and offsets; the elements are files of their own.
_MOST_PICKLE_BYTES = 256 << 20


def read_pickled(file: Path) -> dict[str, PickledTensor]:
    """The tensors of a state dict, without their data.

    Raises:
        NotAStateDictError: the file holds something else than tensors by name.
        CheckpointError: it is damaged.
    """

    def read(archive: zipfile.ZipFile) -> Any:
        [entry] = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        if entry.file_size > _MOST_PICKLE_BYTES:
            raise CheckpointError(
                f"{file}: {entry.filename}",
                f"{entry.file_size} bytes",
                f"at most {_MOST_PICKLE_BYTES}",
            )
        return unpickle(archive.read(entry), str(file))

    state = _with_archive(file, read)
    if type(state) is not dict or not all(
        type(key) is str and key.encode() and type(value) is PickledTensor
        for key, value in state.items()
    ):
        raise NotAStateDictError(str(file), type(state).__name__, "a state dict: tensors by name")
    return state


def read_state_dicts(
    directory: Path, files: _core.WeightFiles
) -> dict[str, dict[str, PickledTensor]]:
    """The tensors of a directory's pickled files, without their data, by file.

    Where no file has the usual name, those of a trainer beside the weights (its optimizer,
    scheduler, arguments) are left out: they are no state dicts.

    Raises:
        CheckpointError: a file is damaged, or none holds tensors by name.
    """
    found: dict[str, dict[str, PickledTensor]] = {}
    skipped: list[NotAStateDictError] = []
    for name in files.names:
        try:
            tensors = read_pickled(directory / name)
        except NotAStateDictError as error:
            skipped.append(error)
            continue
        if files.index_name:
            listed = files.file_of_tensor
            tensors = {key: value for key, value in tensors.items() if listed.get(key) == name}
        found[name] = tensors
    if skipped and (files.index_name or not found):
        raise skipped[0]
    for reason in skipped:
        _LOGGER.info("skipped a file that is no state dict: %s", reason)
    return found


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
    if not tensor.is_within_storage():
        raise CheckpointError(
            str(file), "a tensor that does not fit it", "tensors within their storage"
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
    check_is_file(file)
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
        pass_on_interrupt(error)
        raise CheckpointError(
            str(file), repr(error), "a state dict that torch.save wrote"
        ) from error
