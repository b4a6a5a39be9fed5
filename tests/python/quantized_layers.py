"""Writes small GPTQ, AWQ and compressed-tensors checkpoints for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Integers = npt.NDArray[np.int64]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which output of eight has the i-th lowest bits
OUTPUTS, INPUTS = 24, 256


def packed(values: Integers, axis: int, bits: int = 4) -> torch.Tensor:
    """Unsigned integers, as many consecutive ones of an axis as fill an int32, lowest first."""
    per_word = 32 // bits
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, -values.shape[axis] % per_word)
    values = np.moveaxis(np.pad(values, padding), axis, -1)
    words = values.reshape(*values.shape[:-1], -1, per_word) << np.arange(0, 32, bits)
    whole = np.moveaxis(words.sum(-1), -1, axis).astype(np.uint32).view(np.int32)
    return torch.from_numpy(np.ascontiguousarray(whole))


def awq_packed(values: Integers) -> torch.Tensor:
    """Consecutive outputs, the last axis, in AWQ's order."""
    return packed(
        values.reshape(*values.shape[:-1], -1, 8)[..., AWQ_ORDER].reshape(values.shape), -1
    )


@dataclass
class Layer:
    """A random quantized layer. `scales` and `zeros` are [outputs, groups]."""

    dtype: torch.dtype = torch.float16
    group_size: int = 32
    bits: int = 4
    outputs: int = OUTPUTS
    inputs: int = INPUTS
    zero: int | None = None  # of all groups; None: random ones
    groups: Integers = field(init=False)  # of the inputs

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.group_size + self.outputs)
        size = self.group_size if self.group_size > 0 else self.inputs
        count = -(-self.inputs // size)
        self.groups = np.arange(self.inputs) // size
        self.values = rng.integers(0, 1 << self.bits, (self.outputs, self.inputs))
        self.values[:, :2] = 0, (1 << self.bits) - 1
        scales = np.exp(rng.normal(-5, 1, (self.outputs, count))) * rng.choice([-1, 1], count)
        self.scales = torch.from_numpy(scales).to(self.dtype)
        if self.zero is None:
            self.zeros = rng.integers(1, 1 << self.bits, (self.outputs, count))
        else:
            self.zeros = np.full((self.outputs, count), self.zero)

    def weights(self) -> npt.NDArray[np.float32]:
        scales, zeros = self.scales.float().numpy(), self.zeros
        if scales.shape[1] == 1 < self.groups.max() + 1:
            raise AssertionError("a scale for every group")
        integers = (self.values - zeros[:, self.groups]).astype(np.float32)
        return scales[:, self.groups] * integers


def gptq(layer: Layer, version: int = 1, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {
        "qweight": packed(layer.values.T, 0),
        "qzeros": packed(layer.zeros.T - (1 if version == 1 else 0), 1),
        "scales": layer.scales.T.contiguous(),
        "g_idx": torch.from_numpy(layer.groups.astype(np.int32)),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": layer.group_size}
    config |= {"sym": layer.zero is not None, "desc_act": False}
    config |= {"checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    return tensors, config | fields


def awq(layer: Layer, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {
        "qweight": awq_packed(layer.values.T),
        "qzeros": awq_packed(layer.zeros.T),
        "scales": layer.scales.T.contiguous(),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": layer.group_size, "version": "gemm"}
    return tensors, config | {"zero_point": True} | fields


def compressed(
    layer: Layer, format_: str = "pack-quantized", **fields: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    is_symmetric = layer.zero is not None
    middle = 1 << (layer.bits - 1)
    tensors = {"weight_scale": layer.scales.contiguous()}
    if format_ == "pack-quantized":
        tensors["weight_packed"] = packed(layer.values, 1, layer.bits)
        tensors["weight_shape"] = torch.tensor(layer.values.shape)
        zeros = packed(layer.zeros, 0, layer.bits)
    else:
        tensors["weight"] = torch.from_numpy(layer.values - middle).to(torch.int8)
        zeros = torch.from_numpy(layer.zeros - middle).to(torch.int8)
    if not is_symmetric:
        tensors["weight_zero_point"] = zeros
    strategy = {"strategy": "group", "group_size": layer.group_size}
    if layer.group_size < 0:
        strategy = {"strategy": "channel", "group_size": None}
    weights = {"num_bits": layer.bits, "type": "int", "symmetric": is_symmetric, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights | strategy | fields}
    config = {"quant_method": "compressed-tensors", "format": format_, "ignore": ["lm_head"]}
    config |= {"config_groups": {"group_0": group}, "quantization_status": "compressed"}
    return tensors, config


def write_layer(directory: Path, tensors: dict[str, Any], config: dict[str, Any]) -> Path:
    """A directory with one layer, "a"."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"quantization_config": config}))
    save_file(
        {f"a.{name}": tensor for name, tensor in tensors.items()}, directory / "model.safetensors"
    )
    return directory


def quantize_model(
    directory: Path, write: Any, layer_fields: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Gives the linear layers of a model random integers; returns its tensors as floats."""
    file = directory / "model.safetensors"
    floats, config = load_file(file), {}
    stored = dict(floats)
    for name in list(floats):
        module = name.removesuffix(".weight")
        if not module.endswith(LINEAR):
            continue
        outputs, inputs = floats[name].shape
        layer = Layer(outputs=outputs, inputs=inputs, **layer_fields)
        parts, config = write(layer)
        if write is gptq:
            parts["bias"] = torch.zeros(outputs)
        del stored[name]
        stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        floats[name] = torch.from_numpy(layer.weights())
    save_file(stored, file)
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"quantization_config": config}))
    return floats
