"""Which format a checkpoint has, as the engine detects it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from forerun import _core
from forerun.checkpoints.inspection.tensors import TensorInfo
from forerun.errors import CheckpointError

Tensors = Mapping[str, TensorInfo]


def strip_prefixes(tensors: Tensors) -> dict[str, TensorInfo]:
    """The same tensors by the names that all writers of a format agree on."""
    stripped: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        short = _core.canonical_draft_name(name)
        if short in stripped:
            raise CheckpointError(short, "there twice, with and without a prefix", "one of them")
        stripped[short] = tensor
    return stripped


def detect(names: Tensors, config: Mapping[str, Any]) -> _core.CheckpointFormat:
    """The format of the tensors (of strip_prefixes) and of a config that must not contradict them.

    Raises:
        CheckpointError: no format has such tensors, or the config states another.
    """
    shapes = {name: tensor.shape for name, tensor in names.items()}
    return _core.detect_format(shapes, encode(config))


def encode(config: Mapping[str, Any]) -> bytes:
    """The text of a config, for the engine's functions."""
    return json.dumps(config).encode()
