"""The NumPy reference itself against transformers and torch, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from drafter_checkpoints import HIDDEN, Random, Target, make_draft_model, make_target
from drafter_reference import Eagle, Eagle3, Mtp, make_drafter
from drafter_rows import LLAMA3_SCALING
from drafter_runs import directories, row_named
from model_reference import Decoder, LanguageModel, gelu, rms_norm
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

TOKENS = [3, 9, 27, 4, 8, 1, 2, 37, 57, 9, 3, 25, 28, 60, 9, 3, 25, 28, 41]
# transformers takes norms, softmax and rotations in float32 whatever the model's dtype is.
CLOSE = {"rtol": 1e-6, "atol": 5e-6}


@pytest.fixture(autouse=True)
def in_float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.no_grad():
        yield
    torch.set_default_dtype(before)


def as_tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64))


def write(target: Target, directory: Path, **changes: Any) -> Path:
    target.checkpoint.config |= changes
    return target.checkpoint.write(directory)


def oracle(directory: Path, model_class: Any) -> Any:
    return model_class.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize(
    ("family", "model_class", "model_type"),
    [
        ("llama", transformers.LlamaForCausalLM, "llama"),
        ("qwen3", transformers.Qwen3ForCausalLM, "qwen3"),
        # MiMo is Qwen2 with layers for multi-token prediction beside it.
        ("mimo", transformers.Qwen2ForCausalLM, "qwen2"),
    ],
)
def test_targets_are_those_of_transformers(
    family: str, model_class: Any, model_type: str, tmp_path: Path
) -> None:
    ours = LanguageModel(write(make_target(family), tmp_path / "ours"))
    theirs = oracle(
        write(make_target(family), tmp_path / "theirs", model_type=model_type), model_class
    )
    result = theirs(torch.tensor([TOKENS]), output_hidden_states=True)
    np.testing.assert_allclose(ours.logits(TOKENS), result.logits[0].numpy(), **CLOSE)
    residuals = ours.residuals(TOKENS)
    for k in range(ours.num_layers):
        np.testing.assert_allclose(residuals[k], result.hidden_states[k][0].numpy(), **CLOSE)
    # transformers' last hidden state is after the final norm.
    final = result.hidden_states[ours.num_layers][0].numpy()
    np.testing.assert_allclose(ours.hidden(TOKENS), final, **CLOSE)


@pytest.mark.parametrize("scaling", [None, LLAMA3_SCALING, {"rope_type": "linear", "factor": 3.0}])
@pytest.mark.parametrize("is_tied", [False, True])
def test_draft_models_are_those_of_transformers(
    scaling: Any, is_tied: bool, tmp_path: Path
) -> None:
    made = make_draft_model(make_target(), Random(3), is_tied=is_tied)
    if scaling is not None:
        made.config["rope_scaling"] = scaling
    directory = made.write(tmp_path)
    theirs = oracle(directory, transformers.LlamaForCausalLM)(torch.tensor([TOKENS]))
    ours = LanguageModel(directory).logits(TOKENS)
    np.testing.assert_allclose(ours, theirs.logits[0].numpy(), **CLOSE)


def load(module: torch.nn.Module, decoder: Decoder) -> None:
    state = {name: as_tensor(values) for name, values in decoder.weights.items()}
    unused = module.load_state_dict(state, strict=False)
    assert not unused.missing_keys
    assert set(unused.unexpected_keys) <= {"hidden_norm.weight"} | {
        name for name in state if not name.startswith(("self_attn", "mlp", "input", "post"))
    }


def llama_layer(decoder: Decoder, theta: float = 10000.0) -> tuple[Any, dict[str, Any]]:
    """Their layer, and what it needs to know of the positions."""
    is_qwen3 = "self_attn.q_norm.weight" in decoder.weights
    config_class = transformers.Qwen3Config if is_qwen3 else transformers.LlamaConfig
    sizes = {
        key: value for key, value in decoder.config.items() if not key.startswith(("rope", "model"))
    }
    config = config_class(
        **sizes | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    )
    config._attn_implementation = "eager"
    layer = (Qwen3DecoderLayer if is_qwen3 else LlamaDecoderLayer)(config, 0)
    rotary = (Qwen3RotaryEmbedding if is_qwen3 else LlamaRotaryEmbedding)(config)
    positions = torch.arange(len(TOKENS) - 1)[None]
    cos_sin = rotary(torch.zeros(1, positions.shape[1], HIDDEN), positions)
    mask = torch.full((positions.shape[1],) * 2, -torch.inf).triu(1)[None, None]
    return layer, {"position_embeddings": cos_sin, "attention_mask": mask}


def inputs_of(drafter: Any) -> tuple[Any, Any]:
    return drafter.embed(TOKENS[1:]), drafter.features(TOKENS)[:-1]


def test_eagle_is_a_llama_layer_without_its_first_norm() -> None:
    row = row_named("eagle bias")
    target, directory = directories(row)
    drafter = make_drafter("eagle", LanguageModel(target), directory)
    assert isinstance(drafter, Eagle)
    layer, context = llama_layer(drafter.layer)
    layer.input_layernorm = torch.nn.Identity()
    load(layer, drafter.layer)
    embedded, features = inputs_of(drafter)
    fc = torch.nn.Linear(2 * HIDDEN, HIDDEN)
    fc.weight.copy_(as_tensor(drafter.weights["fc.weight"]))
    fc.bias.copy_(as_tensor(drafter.weights["fc.bias"]))
    both = torch.cat([as_tensor(embedded), as_tensor(features)], dim=-1)
    expected = layer(fc(both)[None], **context)[0].numpy()
    np.testing.assert_allclose(drafter.forward(embedded, features)[0], expected, **CLOSE)


def norm_of(weight: Any, eps: float) -> Any:
    norm = LlamaRMSNorm(len(weight), eps)
    norm.weight.copy_(as_tensor(weight))
    return norm


@pytest.mark.parametrize("name", ["eagle3 two layers", "eagle3 norm_before_residual"])
def test_eagle3_is_llama_layers_the_first_twice_as_wide(name: str) -> None:
    row = row_named(name)
    target, directory = directories(row)
    drafter = make_drafter("eagle3", LanguageModel(target), directory)
    assert isinstance(drafter, Eagle3)
    first, *others = drafter.layers
    layer, context = llama_layer(first)
    for part in ("q_proj", "k_proj", "v_proj"):
        outputs = first.weights[f"self_attn.{part}.weight"].shape[0]
        setattr(layer.self_attn, part, torch.nn.Linear(2 * HIDDEN, outputs, bias=False))
    load(layer, first)
    hidden_norm = norm_of(first.weights["hidden_norm.weight"], 1e-3)
    embedded, features = inputs_of(drafter)
    feature = as_tensor(features)[None]
    both = torch.cat([layer.input_layernorm(as_tensor(embedded)[None]), hidden_norm(feature)], -1)
    residual = hidden_norm(feature) if drafter.norm_before_residual else feature
    middle = residual + layer.self_attn(both, **context)[0]
    x = middle + layer.mlp(layer.post_attention_layernorm(middle))
    for other in others:
        next_layer, context = llama_layer(other)
        load(next_layer, other)
        x = next_layer(x, **context)
    got, fed_back = drafter.forward(embedded, features)
    np.testing.assert_allclose(fed_back, x[0].numpy(), **CLOSE)
    normed = norm_of(drafter.weights["norm.weight"], 1e-3)(x)[0].numpy()
    np.testing.assert_allclose(got, normed, **CLOSE)


@pytest.mark.parametrize("name", ["mtp deepseek", "mtp qwen"])
def test_mtp_is_a_layer_of_the_target_after_a_fusion(name: str) -> None:
    row = row_named(name)
    target, directory = directories(row)
    drafter = make_drafter("mtp", LanguageModel(target), directory)
    assert isinstance(drafter, Mtp)
    layer, context = llama_layer(drafter.layer, theta=500.0)
    load(layer, drafter.layer)
    embedded, features = inputs_of(drafter)
    parts = [
        norm_of(drafter.weights[f"{norm}.weight"], 1e-5)(as_tensor(x))
        for norm, x in ((drafter.embedding_norm, embedded), (drafter.hidden_norm, features))
    ]
    fused = torch.cat(parts, dim=-1) @ as_tensor(drafter.weights[f"{drafter.fusion}.weight"]).T
    final = norm_of(drafter.weights[f"{drafter.final_norm}.weight"], 1e-5)
    expected = final(layer(fused[None], **context))[0].numpy()
    np.testing.assert_allclose(drafter.forward(embedded, features)[0], expected, **CLOSE)


def test_windows_and_gelu_and_norms_are_those_of_torch() -> None:
    x = Random(5).matrix(17, HIDDEN, 9.0)
    np.testing.assert_allclose(gelu(x), torch.nn.functional.gelu(as_tensor(x)).numpy(), atol=1e-14)
    weight = Random(6).norm(HIDDEN)
    expected = torch.nn.functional.rms_norm(as_tensor(x), (HIDDEN,), as_tensor(weight), 1e-3)
    np.testing.assert_allclose(rms_norm(x, weight, 1e-3), expected.numpy())

    target, directory = directories(row_named("eagle3 sliding window"))
    drafter = make_drafter("eagle3", LanguageModel(target), directory)
    assert isinstance(drafter, Eagle3)
    wide = drafter.layers[1]
    rows = Random(7).matrix(len(TOKENS) - 1, HIDDEN, 7.0)
    narrow = Decoder(wide.weights, wide.config, window=7)
    layer, context = llama_layer(narrow)
    load(layer, narrow)
    mask = context["attention_mask"]
    context["attention_mask"] = mask + torch.full(mask.shape[2:], -torch.inf).tril(-7)
    expected = layer(as_tensor(rows)[None], **context)[0]
    np.testing.assert_allclose(narrow(rows), expected.numpy(), **CLOSE)
    assert np.abs(narrow(rows) - wide(rows)).max() > 0.1
