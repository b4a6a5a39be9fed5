"""GPTQ, AWQ and compressed-tensors checkpoints against what their formats say, in NumPy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import llama_metadata, llama_tensors, write_gguf
from quantized_layers import (
    INPUTS,
    LINEAR,
    OUTPUTS,
    Layer,
    awq,
    compressed,
    gptq,
    quantize_model,
    write_layer,
)
from safetensors.torch import save_file
from tiny_checkpoints import SIZES

from forerun import LLM, _core
from forerun.errors import CheckpointError, InvalidArgumentError

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


@pytest.mark.parametrize(
    ("write", "fields", "missing"),
    [
        (gptq, {"desc_act": True}, "g_idx"),
        (compressed, {"actorder": "group"}, "weight_g_idx"),
        (compressed, {"actorder": "dynamic"}, "weight_g_idx"),
        (compressed, {"actorder": True}, "weight_g_idx"),
    ],
)
def test_groups_in_any_order_must_be_stored(
    write: Any, fields: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    tensors, config = write(Layer(), **fields)
    tensors.pop("g_idx", None)
    with pytest.raises(CheckpointError, match=rf"'a\.{missing}': got nothing; .*any order"):
        _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")


@pytest.mark.parametrize(
    ("write", "layer", "fields"),
    [
        (gptq, Layer(), {"desc_act": False}),
        (gptq, Layer(group_size=-1), {"desc_act": True}),
        (compressed, Layer(), {"actorder": "weight"}),
        (compressed, Layer(), {"actorder": None}),
    ],
)
def test_groups_in_order_need_not_be_stored(
    write: Any, layer: Layer, fields: dict[str, Any], tmp_path: Path
) -> None:
    tensors, config = write(layer, **fields)
    tensors.pop("g_idx", None)
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
        ({"actorder": "random"}, "actorder: got"),
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
    "a shape that overflows": (
        replaced(Layer(), compressed, weight_shape=torch.tensor([2**31 - 1, 2**31 - 1])),
        "'a.weight_packed'",
    ),
    "a shape beyond int": (
        replaced(Layer(), compressed, weight_shape=torch.tensor([OUTPUTS, 2**31])),
        "'a.weight_shape': got 2147483648 at 1; expected 1 to 2147483647",
    ),
    "a negative shape": (
        replaced(Layer(), compressed, weight_shape=torch.tensor([-1, INPUTS])),
        "'a.weight_shape': got -1 at 0",
    ),
    "no inputs": (
        replaced(Layer(), awq, qweight=torch.empty((0, OUTPUTS // 8), dtype=torch.int32)),
        "extents of 1 to 2147483647",
    ),
    "more inputs than fit 64 bits": (
        replaced(Layer(), gptq, qweight=torch.empty((1 << 60, 0), dtype=torch.int32)),
        "extents of 1 to 2147483647",
    ),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_tensors_that_contradict_the_config_are_refused_by_name(case: str, tmp_path: Path) -> None:
    (tensors, config), message = WRONG_TENSORS[case]
    with pytest.raises(CheckpointError) as error:
        _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")
    assert message in str(error.value)


@pytest.mark.parametrize("zero", [-9, 8, -128, 127])
def test_zero_points_beyond_the_integers_are_refused_by_name(zero: int, tmp_path: Path) -> None:
    zeros = torch.zeros(OUTPUTS, INPUTS // 32, dtype=torch.int8)
    zeros[1, 2] = zero
    tensors, config = replaced(Layer(), compressed, weight_zero_point=zeros)
    with pytest.raises(CheckpointError) as error:
        _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")
    assert f"'a.weight_zero_point': got {zero} at 10; expected -8 to 7" in str(error.value)


def test_zero_points_of_4_bits_may_be_bytes(tmp_path: Path) -> None:
    layer = Layer()
    layer.zeros[0, :2] = 0, 15
    bytes_ = torch.from_numpy(layer.zeros - 8).to(torch.int8)
    directory = write_layer(tmp_path / "a", *replaced(layer, compressed, weight_zero_point=bytes_))
    ours = _core.read_tensor(str(directory), "a.weight")
    np.testing.assert_array_equal(ours, layer.weights(), strict=True)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors, config = awq(Layer())
    del tensors["scales"]
    with pytest.raises(CheckpointError, match=r"'a\.scales': got nothing"):
        _core.read_tensor(str(write_layer(tmp_path / "a", tensors, config)), "a.weight")


def shuffled(layer: Layer, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """GPTQ of inputs in any order."""
    np.random.default_rng(6).shuffle(layer.groups)
    return gptq(layer, desc_act=True, **fields)


def write_models(tmp_path: Path, write: Any, layer_fields: dict[str, Any]) -> tuple[Path, Path]:
    """A tiny Llama with quantized layers, and one with the same weights as floats."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    quantized, floats = tmp_path / "quantized", tmp_path / "floats"
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    for directory in (quantized, floats):
        model.save_pretrained(directory)
    save_file(quantize_model(quantized, write, layer_fields), floats / "model.safetensors")
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_type_of_floats_leaves_integers_alone(dtype: str, tmp_path: Path) -> None:
    quantized, floats = write_models(tmp_path, gptq, {})
    llm = LLM(quantized, dtype=dtype, skip_tokenizer_init=True)
    assert llm.limits.weight_bytes.keys() == {"int5", dtype}
    unpacked = LLM(quantized, dtype=dtype, quantization="none", skip_tokenizer_init=True)
    assert unpacked.limits.weight_bytes.keys() == {dtype}
    tokens = np.arange(3, 60, dtype=np.int32)
    none = _core.QuantizationOptions("none", "none", "none")
    np.testing.assert_array_equal(
        _core.Model(str(quantized), dtype=dtype, quantization=none).logits(tokens),
        _core.Model(str(floats), dtype=dtype).logits(tokens),
    )


UNPACKED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "odd groups": (gptq, {"group_size": 24}, "group size 24 is not a multiple of 32"),
    "zero points": (compressed, {"bits": 8, "group_size": -1}, "8 bits with zero points"),
    "float32 scales": (compressed, {"dtype": torch.float32}, "scales that are no float16"),
    "any order": (shuffled, {}, "inputs in any order"),
}


@pytest.mark.parametrize("case", UNPACKED)
def test_the_log_tells_of_layers_that_become_floats(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, layer_fields, reason = UNPACKED[case]
    quantized, _ = write_models(tmp_path, write, layer_fields)
    with caplog.at_level(logging.WARNING, "forerun"):
        llm = LLM(quantized, skip_tokenizer_init=True)
    num_layers = len(LINEAR) * SIZES["num_hidden_layers"]
    assert list(llm.limits.num_unpacked_layers.values()) == [num_layers]
    [message] = [text for text in caplog.messages if "unpacked" in text]
    assert message.startswith(f"{num_layers} linear layers were unpacked to float32, ")
    assert reason in message
    assert "quantization={'linear': 'int8'}" in message
    caplog.clear()
    for quantization in ({"linear": "int8"}, "none"):
        quiet = LLM(quantized, skip_tokenizer_init=True, quantization=quantization)
        assert not quiet.limits.num_unpacked_layers
    assert not [text for text in caplog.messages if "unpacked" in text]


METHODS = {"gptq": gptq, "awq": awq, "compressed-tensors": compressed}


@pytest.mark.parametrize("stored", [*METHODS, "gguf", "floats"])
def test_a_method_is_accepted_where_the_checkpoint_has_it(stored: str, tmp_path: Path) -> None:
    if stored == "gguf":
        path = write_gguf(tmp_path / "a.gguf", llama_metadata(), llama_tensors())
    else:
        quantized, floats = write_models(tmp_path, METHODS.get(stored, gptq), {})
        path = floats if stored == "floats" else quantized
    for method in (*METHODS, "gguf"):
        if method == stored:
            weights = LLM(path, quantization=method, skip_tokenizer_init=True).limits.weight_bytes
            assert weights == LLM(path, skip_tokenizer_init=True).limits.weight_bytes
            continue
        with pytest.raises(InvalidArgumentError) as caught:
            LLM(path, quantization=method, skip_tokenizer_init=True)
        error = caught.value
        assert (error.field, error.value) == ("quantization", f"'{method}'")
        wanted = "not quantized" if stored == "floats" else f"None or '{stored}'"
        assert wanted in error.expected


def test_a_method_is_one_of_the_drafter_too(tmp_path: Path) -> None:
    quantized, floats = write_models(tmp_path, awq, {})
    draft: dict[str, Any] = {"model": str(quantized), "method": "draft_model"}
    LLM(floats, speculative_config=draft | {"quantization": "awq"}, skip_tokenizer_init=True)
    with pytest.raises(InvalidArgumentError, match="None or 'awq'"):
        LLM(floats, speculative_config=draft | {"quantization": "gptq"}, skip_tokenizer_init=True)


def test_speculation_changes_no_token_of_a_quantized_model(tmp_path: Path) -> None:
    quantized, _ = write_models(tmp_path, awq, {})
    prompts = [{"prompt_token_ids": [5, 6, 7, 5, 6, 7, 5, 6]}]
    outputs = []
    for speculative in (None, {"method": "ngram", "num_speculative_tokens": 4}):
        llm = LLM(str(quantized), skip_tokenizer_init=True, speculative_config=speculative)
        outputs.append(llm.generate(prompts)[0].outputs[0].token_ids)
    assert outputs[0] == outputs[1]
