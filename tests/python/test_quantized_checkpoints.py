"""GPTQ, AWQ and compressed-tensors checkpoints against what their formats say, in NumPy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import SIZES

from forerun import LLM, _core
from forerun.errors import CheckpointError

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


_BF16, _F32 = torch.bfloat16, torch.float32
LAYERS: dict[str, tuple[Layer, Any, dict[str, Any]]] = {
    "gptq": (Layer(), gptq, {}),
    "gptq v2": (Layer(), gptq, {"version": 2}),
    "gptq symmetric": (Layer(zero=8), gptq, {}),
    "gptq v2 called v1": (Layer(zero=8), gptq, {"version": 2, "checkpoint_format": "gptq"}),
    "gptq, groups of 128": (Layer(group_size=128), gptq, {}),
    "gptq, whole outputs": (Layer(group_size=-1), gptq, {}),
    "gptq, odd groups": (Layer(group_size=24, inputs=120), gptq, {}),
    "awq": (Layer(), awq, {}),
    "awq, groups of 128": (Layer(group_size=128), awq, {}),
    "awq, groups of 64": (Layer(group_size=64, outputs=40), awq, {}),
    "w4 symmetric": (Layer(_BF16, zero=8), compressed, {}),
    "w4 symmetric, groups of 128": (Layer(_BF16, 128, zero=8), compressed, {}),
    "w4 asymmetric": (Layer(_BF16), compressed, {}),
    "w4 asymmetric, groups of 128": (Layer(_BF16, 128), compressed, {}),
    "w4 by channel": (Layer(group_size=-1, zero=8), compressed, {}),
    "w4, words in part": (Layer(_BF16, -1, inputs=107, outputs=13), compressed, {}),
    "w4, float32 scales": (Layer(_F32), compressed, {}),
    "w8 by channel": (Layer(_BF16, -1, 8, zero=128), compressed, {}),
    "w8 in groups": (Layer(group_size=64, bits=8, zero=128), compressed, {}),
    "w8 asymmetric": (Layer(_BF16, -1, 8), compressed, {}),
    "w8, float32 scales": (Layer(_F32, -1, 8, zero=128), compressed, {}),
    "int8": (Layer(_BF16, -1, 8, zero=128), compressed, {"format_": "int-quantized"}),
    "int8 asymmetric": (Layer(bits=8), compressed, {"format_": "int-quantized"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_scale_times_integer_less_zero(name: str, tmp_path: Path) -> None:
    layer, write, options = LAYERS[name]
    directory = write_layer(tmp_path / "a", *write(layer, **options))
    ours = _core.read_tensor(str(directory), "a.weight")
    np.testing.assert_array_equal(ours, layer.weights(), strict=True)


def test_inputs_may_be_in_any_groups(tmp_path: Path) -> None:
    layer = Layer()
    np.random.default_rng(5).shuffle(layer.groups)
    tensors, config = gptq(layer, desc_act=True)
    ours = _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")
    np.testing.assert_array_equal(ours, layer.weights(), strict=True)


def test_one_scale_for_a_matrix(tmp_path: Path) -> None:
    layer = Layer(torch.bfloat16, -1, 8, zero=128)
    layer.scales = layer.scales[:1].expand(OUTPUTS, 1)
    tensors, config = compressed(layer, "int-quantized", strategy="tensor")
    tensors["weight_scale"] = layer.scales[0].clone()
    ours = _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")
    np.testing.assert_array_equal(ours, layer.weights(), strict=True)


def test_a_layer_that_is_not_quantized_has_plain_weights(tmp_path: Path) -> None:
    _, config = gptq(Layer())
    weight = torch.randn(8, 40)
    directory = write_layer(tmp_path / "a", {"weight": weight}, config)
    np.testing.assert_array_equal(_core.read_tensor(str(directory), "a.weight"), weight.numpy())


WRONG_CONFIGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "bits": (gptq, {"bits": 3}, r"bits: got 3; expected 4"),
    "gptq format": (gptq, {"checkpoint_format": "marlin"}, "checkpoint_format: got"),
    "overrides": (gptq, {"dynamic": {"-:lm_head": {}}}, "dynamic"),
    "group size": (gptq, {"group_size": 0}, "group_size: got 0"),
    "awq version": (awq, {"version": "gemv"}, 'version: got "gemv"; expected "gemm"'),
    "method": (gptq, {"quant_method": "bitsandbytes"}, "expected gptq, awq or compressed-tensors"),
    "no groups": (compressed, {"config_groups": {}}, "config_groups"),
    "a cache": (compressed, {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
    "floats": (compressed, {"format": "float-quantized"}, "format: got"),
    "sparse": (compressed, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    "status": (compressed, {"quantization_status": "frozen"}, "quantization_status"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_config_that_is_not_supported_is_refused_by_name(case: str, tmp_path: Path) -> None:
    write, fields, message = WRONG_CONFIGS[case]
    tensors, config = write(Layer())
    directory = write_layer(tmp_path / "a", tensors, config | fields)
    with pytest.raises(CheckpointError, match=message) as error:
        _core.read_tensor(str(directory), "a.weight")
    assert error.value.field.startswith("config.json: quantization_config.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_bits": 2}, "num_bits: got 2; expected 4 or 8"),
        ({"type": "float"}, "type: got"),
        ({"strategy": "block"}, "strategy: got"),
        ({"dynamic": True}, "dynamic: got true"),
    ],
)
def test_a_scheme_that_is_not_supported_is_refused_by_name(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    directory = write_layer(tmp_path / "a", *compressed(Layer(), **fields))
    with pytest.raises(CheckpointError, match=message):
        _core.read_tensor(str(directory), "a.weight")


@pytest.mark.parametrize("part", ["input_activations", "output_activations"])
def test_quantized_activations_are_refused_by_name(part: str, tmp_path: Path) -> None:
    tensors, config = compressed(Layer())
    config["config_groups"]["group_0"][part] = {"num_bits": 8}
    with pytest.raises(CheckpointError, match=f"{part}: got"):
        _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")


def replaced(layer: Layer, write: Any, **tensors: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    stored, config = write(layer)
    return stored | tensors, config


WRONG_TENSORS = {
    "a group too many": (
        replaced(Layer(), gptq, g_idx=torch.full((INPUTS,), 8, dtype=torch.int32)),
        "'a.g_idx': got 8 at 0; expected 0 to 7",
    ),
    "scales of another shape": (
        replaced(Layer(), gptq, scales=torch.zeros(7, OUTPUTS, dtype=torch.float16)),
        "'a.scales'",
    ),
    "integers of another type": (
        replaced(Layer(), awq, qzeros=torch.zeros(8, OUTPUTS // 8, dtype=torch.int64)),
        "'a.qzeros': got int64; expected int32",
    ),
    "asymmetric zeros": (
        replaced(Layer(zero=8), gptq, qzeros=torch.zeros(8, OUTPUTS // 8, dtype=torch.int32)),
        "'a.qzeros': got a zero point of 0; expected 7",
    ),
    "another shape": (
        replaced(Layer(), compressed, weight_shape=torch.tensor([OUTPUTS, INPUTS + 1])),
        "'a.weight_packed'",
    ),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_that_contradict_the_config_are_refused_by_name(case: str, tmp_path: Path) -> None:
    (tensors, config), message = WRONG_TENSORS[case]
    with pytest.raises(CheckpointError) as error:
        _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")
    assert message in str(error.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors, config = awq(Layer())
    del tensors["scales"]
    with pytest.raises(CheckpointError, match=r"'a\.scales': got nothing"):
        _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_models(tmp_path: Path, write: Any, layer_fields: dict[str, Any]) -> tuple[Path, Path]:
    """A tiny Llama with quantized layers, and one with the same weights as floats."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    quantized, floats = tmp_path / "quantized", tmp_path / "floats"
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(floats)
    LlamaConfig(**sizes).save_pretrained(quantized)
    tensors = load_file(floats / "model.safetensors")
    stored, plain = dict(tensors), dict(tensors)
    for name in tensors:
        module = name.removesuffix(".weight")
        if not module.endswith(LINEAR):
            continue
        outputs, inputs = tensors[name].shape
        layer = Layer(outputs=outputs, inputs=inputs, **layer_fields)
        parts, config = write(layer)
        if write is gptq:
            parts["bias"] = torch.zeros(outputs)
        del stored[name]
        stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        plain[name] = torch.from_numpy(layer.weights())
    save_file(stored, quantized / "model.safetensors")
    save_file(plain, floats / "model.safetensors")
    fields = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(fields | {"quantization_config": config}))
    return quantized, floats


@pytest.mark.parametrize(
    ("write", "layer_fields"),
    [
        (gptq, {}),
        (gptq, {"zero": 8}),
        (awq, {}),
        (compressed, {"dtype": torch.bfloat16, "group_size": -1, "zero": 8}),
        (compressed, {"bits": 8, "group_size": -1, "zero": 128}),
    ],
)
def test_a_quantized_model_computes_with_its_weights(
    write: Any, layer_fields: dict[str, Any], tmp_path: Path
) -> None:
    quantized, floats = write_models(tmp_path, write, layer_fields)
    tokens = np.arange(3, 60, dtype=np.int32)
    ours, theirs = (
        _core.Model(str(directory), dtype="auto").logits(tokens)
        for directory in (quantized, floats)
    )
    # Activations that meet integers are quantized: the logits are close, not equal.
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99
    assert not np.array_equal(ours, theirs), "the integers are multiplied"


def test_speculation_changes_no_token_of_a_quantized_model(tmp_path: Path) -> None:
    quantized, _ = write_models(tmp_path, awq, {})
    prompts = [{"prompt_token_ids": [5, 6, 7, 5, 6, 7, 5, 6]}]
    outputs = []
    for speculative in (None, {"method": "ngram", "num_speculative_tokens": 4}):
        llm = LLM(str(quantized), skip_tokenizer_init=True, speculative_config=speculative)
        outputs.append(llm.generate(prompts)[0].outputs[0].token_ids)
    assert outputs[0] == outputs[1]
