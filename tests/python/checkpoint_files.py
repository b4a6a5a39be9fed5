"""Checkpoints as files: safetensors or pickle, one or several, of any dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Config = dict[str, Any]

SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL"}


def bfloat16_bytes(values: Array) -> bytes:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return rounded.astype(np.uint16).tobytes()


def as_dtype(values: Array, dtype: str) -> Array:
    is_float = values.dtype.kind == "f" and dtype != "bfloat16"
    return np.ascontiguousarray(values.astype(dtype) if is_float else values)


def write_safetensors(path: Path, tensors: Mapping[str, Array], dtype: str) -> None:
    header, data = {}, b""
    for name, values in tensors.items():
        if values.dtype.kind == "f" and dtype == "bfloat16":
            kind, part = "BF16", bfloat16_bytes(values)
        else:
            stored = as_dtype(values, dtype)
            kind, part = SAFETENSORS_DTYPES[str(stored.dtype)], stored.tobytes()
        offsets = [len(data), len(data) + len(part)]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": offsets}
        data += part
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_pickle(path: Path, tensors: Mapping[str, Array], dtype: str) -> None:
    import torch

    state = {name: torch.from_numpy(as_dtype(values, dtype)) for name, values in tensors.items()}
    if dtype == "bfloat16":
        state = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in state.items()}
    torch.save(state, path)


@dataclass
class Checkpoint:
    config: Config
    tensors: Tensors
    file: str = "model.safetensors"
    num_files: int = 1
    dtype: str = "float32"

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        if self.num_files == 1:
            is_pickle = not self.file.endswith(".safetensors")
            write = write_pickle if is_pickle else write_safetensors
            write(directory / self.file, self.tensors, self.dtype)
            return directory
        names = list(self.tensors)
        weight_map = {}
        for index in range(self.num_files):
            file = f"model-{index + 1:05}-of-{self.num_files:05}.safetensors"
            part = names[index :: self.num_files]
            write_safetensors(directory / file, {n: self.tensors[n] for n in part}, self.dtype)
            weight_map |= dict.fromkeys(part, file)
        size = sum(values.size * 4 for values in self.tensors.values())
        index_text = json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map})
        (directory / "model.safetensors.index.json").write_text(index_text)
        return directory

    def renamed(self, rename: Callable[[str], str]) -> Checkpoint:
        self.tensors = {rename(name): values for name, values in self.tensors.items()}
        return self

    def prefixed(self, prefix: str, *kept: str) -> Checkpoint:
        return self.renamed(lambda name: name if name in kept else prefix + name)

    def stored_as(self, **how: Any) -> Checkpoint:
        for name, value in how.items():
            assert hasattr(self, name)
            setattr(self, name, value)
        return self
