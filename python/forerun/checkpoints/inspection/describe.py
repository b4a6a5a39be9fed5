"""Everything that can be told of a checkpoint, and what it leaves open."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun import _core
from forerun.checkpoints.inspection.detect import Tensors, detect, encode, strip_prefixes
from forerun.checkpoints.inspection.result import Inspection
from forerun.checkpoints.inspection.tensors import read_config, read_tensors
from forerun.errors import CheckpointError

# What config.json leaves out means what transformers' Llama config means by it.
_DEFAULT_ROPE_THETA = 10000.0
# Its embeddings or projections are several modules each.
_ARCTIC_SEQUENCES = "Arctic sequences"


def inspect(path: Path, method: str | None = None) -> Inspection:
    """Tells what `path`, a checkpoint directory or a `.gguf` file, is.

    Args:
        method: what the caller takes it for; None to accept whatever it is. A language model may
            be taken for a "draft_model", and for "mtp" where it has the layers.

    Raises:
        CheckpointError: files are missing or damaged, tensors contradict each other, or the
            tensors, the config and `method` do not agree on what this is.
    """
    if path.suffix == ".gguf" and not os.path.isdir(path):
        from forerun.checkpoints.inspection.gguf_file import inspect_gguf

        return inspect_gguf(path, method)
    if not os.path.isdir(path):
        raise CheckpointError(
            "path", f"{path}: no such directory", "a directory with config.json and weights"
        )
    config = read_config(path)
    tensors = read_tensors(path)
    names = strip_prefixes(tensors)
    found = detect(names, config)
    if method is not None and not found.can_serve_as(method):
        raise CheckpointError(
            "method", method, f"{found.name}, as the tensors are: {found.evidence}"
        )
    inspection = Inspection(
        path,
        found.name,
        found.evidence,
        sum(math.prod(t.shape) for t in tensors.values()),
        sum((path / file).stat().st_size for file in {t.file for t in tensors.values()}),
    )
    inspection.mtp_tensor = found.mtp_tensor or None
    inspection.obstacle = found.obstacle or None
    facts = _Facts(config, names)
    _RESOLVERS[found.name](facts, inspection)
    if found.name != "target":
        inspection.options |= {"made for": facts.target_name()}
    return inspection


def fit_problems(drafter: Inspection, target: Inspection) -> list[str]:
    """Why a drafter cannot serve a target; empty where nothing speaks against it."""
    problems = []
    if target.method != "target":
        problems.append(f"{target.path} is no language model but a drafter: {target.method}")
    # A language model drafts for any other whose vocabulary it shares in part.
    sizes = []
    if drafter.method != "target":
        sizes.append(("vocab_size", drafter.vocab_size, target.vocab_size))
        sizes.append(("hidden_size", drafter.hidden_size, target.hidden_size))
    for name, has, wants in sizes:
        if has is None or wants is None or has == wants:
            continue
        # Targets gain tokens that Medusa heads never saw.
        if not (drafter.method == "medusa" and name == "vocab_size" and has < wants):
            problems.append(f"{name}: the drafter is for {has}, the target has {wants}")
    return problems


class _Facts:
    """A config and tensors that must not contradict each other."""

    def __init__(self, config: Mapping[str, Any], names: Tensors) -> None:
        self.names = names
        self.is_speculators = "speculators_model_type" in config
        self.config: dict[str, Any] = json.loads(_core.flatten_draft_config(encode(config)))

    def size(self, *keys: str) -> int | None:
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if type(value) is not int or not 0 < value < 2**31:
                raise CheckpointError(key, repr(value), "a positive integer below 2^31")
            return value
        return None

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(key, repr(value), "true or false")
        return value

    def shape(self, name: str, *expected: int | None) -> tuple[int, ...]:
        """The shape of a tensor that must be there; None stands for any size."""
        if name not in self.names:
            raise CheckpointError(name, "no such tensor", f"shape {_shape(expected)}")
        shape = self.names[name].shape
        fits = len(shape) == len(expected) and all(
            e is None or e == s for s, e in zip(shape, expected, strict=True)
        )
        if not fits:
            raise CheckpointError(name, f"shape {_shape(shape)}", f"shape {_shape(expected)}")
        return shape

    def count(self, pattern: str) -> int:
        """How many indices from 0 on the pattern's group takes, without a gap."""
        found = {int(m[1]) for name in self.names if (m := re.match(pattern, name))}
        if found != set(range(len(found))):
            raise CheckpointError(pattern, f"numbers {sorted(found)}", "numbers from 0 on")
        return len(found)

    def same(self, what: str, configured: int | None, actual: int) -> int:
        if configured is not None and configured != actual:
            raise CheckpointError(what, str(configured), f"{actual}, as the tensors are")
        return actual

    def target_name(self) -> str | None:
        """What the config calls the target that the drafter was made for."""
        speculators = self.config.get("speculators_config")
        verifier = speculators.get("verifier") if isinstance(speculators, dict) else None
        named = verifier.get("name_or_path") if isinstance(verifier, dict) else None
        name = named or self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) else None

    def rope_theta(self) -> float:
        value = self.config.get("rope_theta")
        parameters = self.config.get("rope_parameters")
        if isinstance(parameters, dict):
            value = parameters.get("rope_theta", value)
        if value is None:
            return _DEFAULT_ROPE_THETA
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError("rope_theta", repr(value), "a positive number")
        return float(value)

    def layer_ids(self, num_states: int) -> list[int] | None:
        key = "eagle_aux_hidden_state_layer_ids"
        ids = self.config.get(key)
        if ids is None:
            return None
        is_list = isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)
        if not is_list or len(ids) != num_states:
            raise CheckpointError(key, repr(ids), f"{num_states} ids, as fc has inputs for")
        return list(ids)


def _shape(sizes: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in sizes) + "]"


def _check_layer(facts: _Facts, layer: int, hidden: int, inputs: int) -> None:
    prefix = f"layers.{layer}"
    query, _ = facts.shape(f"{prefix}.self_attn.q_proj.weight", None, inputs)
    key, _ = facts.shape(f"{prefix}.self_attn.k_proj.weight", None, inputs)
    facts.shape(f"{prefix}.self_attn.v_proj.weight", key, inputs)
    facts.shape(f"{prefix}.self_attn.o_proj.weight", hidden, query)
    inner, _ = facts.shape(f"{prefix}.mlp.gate_proj.weight", None, hidden)
    facts.shape(f"{prefix}.mlp.up_proj.weight", inner, hidden)
    facts.shape(f"{prefix}.mlp.down_proj.weight", hidden, inner)
    facts.shape(f"{prefix}.post_attention_layernorm.weight", hidden)


def _resolve_eagle3(facts: _Facts, result: Inspection) -> None:
    names = facts.names
    hidden = facts.shape("layers.0.self_attn.o_proj.weight", None, None)[0]
    facts.same("hidden_size", facts.size("hidden_size"), hidden)
    _check_layer(facts, 0, hidden, 2 * hidden)
    facts.shape("layers.0.hidden_norm.weight", hidden)
    facts.shape("layers.0.input_layernorm.weight", hidden)
    facts.shape("norm.weight", hidden)
    num_layers = facts.count(r"layers\.(\d+)\.")
    for layer in range(1, num_layers):
        _check_layer(facts, layer, hidden, hidden)
    target_hidden = facts.size("target_hidden_size") or hidden
    num_states = 0
    if "fc.weight" in names:
        width = facts.shape("fc.weight", hidden, None)[1]
        num_states, rest = divmod(width, target_hidden)
        if rest or num_states == 0:
            raise CheckpointError(
                "fc.weight", f"{width} inputs", f"a multiple of the target's {target_hidden}"
            )
        if "input_norm.weight" in names:
            facts.shape("input_norm.weight", width)
    for flag, norm in (("norm_before_fc", "input_norm.weight"), ("fc_norm", "fc_norm.0.weight")):
        if facts.flag(flag, False):
            facts.shape(norm, None)
    result.hidden_size = target_hidden
    _resolve_draft_vocabulary(facts, result, hidden)
    ids = facts.layer_ids(num_states)
    taken = _core.configured_aux_layers(encode(facts.config))
    result.options |= {
        "format": _eagle3_format(facts),
        "layers": num_layers,
        "auxiliary hidden states": num_states or "none: the final hidden state is used",
        "layer ids": ids,
        "layers before each state": taken,
        "norm_before_residual": facts.flag(
            "norm_before_residual", facts.is_speculators and result.method == "eagle3"
        ),
        "norm_before_fc": "input_norm.weight" in names,
        "fc_norm": "fc_norm.0.weight" in names,
        "norm_output": facts.flag("norm_output", False),
        "q/k norms": "layers.0.self_attn.q_norm.weight" in names,
        "attention bias": "layers.0.self_attn.q_proj.bias" in names,
        "own embedding": "embed_tokens.weight" in names,
        "rope_theta": facts.rope_theta(),
    }
    _ask_for_bias(facts, result, "attention_bias", "layers.0.self_attn.q_proj.bias")
    if num_states and ids is None:
        result.open_questions.append(
            "layer ids are not given: 2, half of the target's layers and its last but two"
        )
    elif ids and not facts.is_speculators:
        result.open_questions.append(
            "layer ids may count what enters a layer or what leaves it"
            + ("; the first is 1, so what leaves it" if taken != ids else "; what enters it")
        )
    if result.options["norm_output"]:
        result.open_questions.append(
            "norm_output may mean that the normed state is fed back, or not; it is fed back"
        )


def _ask_for_bias(facts: _Facts, result: Inspection, flag: str, tensor: str) -> None:
    # Some writers copy the target's flag and have no biases: no contradiction to refuse.
    if facts.config.get(flag) is True and tensor not in facts.names:
        result.open_questions.append(f"{flag} is true, but there is no {tensor}: none is added")


def _eagle3_format(facts: _Facts) -> str:
    if facts.is_speculators:
        return "speculators"
    architectures = facts.config.get("architectures") or []
    return "SGLang or SpecForge" if "LlamaForCausalLMEagle3" in architectures else "research"


def _resolve_draft_vocabulary(facts: _Facts, result: Inspection, hidden: int) -> None:
    names = facts.names
    result.vocab_size = facts.size("vocab_size")
    if "t2d" in names:
        facts.shape("t2d", result.vocab_size)
    if "embed_tokens.weight" in names:
        facts.shape("embed_tokens.weight", result.vocab_size, None)
    if "lm_head.weight" not in names:
        whole = "the target's, with its head"
        reduced = f"{facts.shape('d2t', None)[0]}, with the target's rows" if "d2t" in names else ""
        result.options["draft vocabulary"] = reduced or whole
        return
    rows = facts.shape("lm_head.weight", None, hidden)[0]
    facts.same("draft_vocab_size", facts.size("draft_vocab_size"), rows)
    if rows != result.vocab_size:
        facts.shape("d2t", rows)
    result.options["draft vocabulary"] = rows


def _resolve_eagle(facts: _Facts, result: Inspection) -> None:
    hidden = facts.shape("fc.weight", None, None)[0]
    facts.same("hidden_size", facts.size("hidden_size"), hidden)
    num_layers = facts.count(r"layers\.(\d+)\.")
    for layer in range(num_layers):
        _check_layer(facts, layer, hidden, hidden)
    if "fc.bias" in facts.names:
        facts.shape("fc.bias", hidden)
    _ask_for_bias(facts, result, "bias", "fc.bias")
    result.hidden_size = hidden
    result.vocab_size = facts.size("vocab_size")
    result.options |= {
        "layers": num_layers,
        "fc bias": "fc.bias" in facts.names,
        "attention bias": "layers.0.self_attn.q_proj.bias" in facts.names,
        "own embedding": "embed_tokens.weight" in facts.names,
        "rope_theta": facts.rope_theta(),
    }


def _resolve_mlp_speculator(facts: _Facts, result: Inspection) -> None:
    names = facts.names
    is_lstm = "forget_emb.0.weight" in names
    head = facts.shape("head.0.weight", None, None)
    result.vocab_size = facts.same("vocab_size", facts.size("vocab_size"), head[0])
    num_heads = facts.count(r"head\.(\d+)\.")
    num_tokens = facts.size("n_predict") or num_heads
    is_tied = facts.flag("tie_weights", num_heads == 1 and num_tokens > 1)
    if num_heads not in ((1, num_tokens) if is_tied else (num_tokens,)):
        raise CheckpointError("n_predict", str(num_tokens), f"{num_heads}, as there are heads")
    first = "forget_proj.0.weight" if is_lstm else "proj.0.weight"
    variant = "Arctic LSTM" if is_lstm else "recurrent sum"
    if first not in names and "proj.0.0.weight" in names:
        first = "proj.0.0.weight"
        variant = _ARCTIC_SEQUENCES
    elif "emb.0.0.weight" in names:
        variant = _ARCTIC_SEQUENCES
    result.hidden_size = facts.shape(first, None, None)[1]
    given = "input_hidden_dim" if "input_hidden_dim" in facts.config else "emb_dim"
    if type(facts.config.get(given)) is int:
        facts.same(given, facts.size(given), result.hidden_size)
    for i in range(num_heads):
        facts.shape(f"head.{i}.weight", *head)
        if not is_lstm and f"emb.{i}.weight" in names:
            inner = facts.shape(f"emb.{i}.weight", head[0], None)[1]
            inputs = result.hidden_size if i == 0 else inner
            facts.shape(f"proj.{i}.weight", inner, inputs)
            facts.shape(f"ln.{i}.weight", inner)
            facts.shape(f"ln.{i}.bias", inner)
    result.options |= {
        "variant": variant,
        "tokens": num_tokens,
        "inner size": head[1],
        "tied weights": is_tied,
        "scaled input": facts.flag("scale_input", False),
    }


def _resolve_medusa(facts: _Facts, result: Inspection) -> None:
    names = facts.names
    is_research = not any(name.startswith("blocks.") for name in names)
    head = r"(\d+)\.\d+\." if is_research else r"blocks\.(\d+)\."
    linear = "{}.{}.linear" if is_research else "blocks.{}.layers.{}"
    num_heads = facts.count(head)
    num_layers = facts.count(r"0\.(\d+)\.linear" if is_research else r"blocks\.0\.layers\.(\d+)\.")
    hidden = facts.shape(linear.format(0, 0) + ".weight", None, None)[0]
    result.hidden_size = facts.same("hidden_size", facts.size("hidden_size"), hidden)
    is_shared = not is_research and "lm_heads.0.weight" not in names
    has_head = not is_shared or "lm_head.weight" in names
    # The research format's flag is known to be wrong.
    says_bias = not is_research and facts.flag("medusa_fc_bias", False)
    has_bias = says_bias or linear.format(0, 0) + ".bias" in names
    rows = None
    for i in range(num_heads):
        for j in range(num_layers):
            facts.shape(linear.format(i, j) + ".weight", hidden, hidden)
            if has_bias:
                facts.shape(linear.format(i, j) + ".bias", hidden)
        lm_head = f"{i}.{num_layers}.weight" if is_research else f"lm_heads.{i}.weight"
        if has_head:
            rows = facts.shape("lm_head.weight" if is_shared else lm_head, rows, hidden)[0]
    result.vocab_size = rows or facts.size("vocab_size")
    if "token_map" in names:
        facts.shape("token_map", rows)
        result.vocab_size = facts.size("vocab_size")
    result.options |= {
        "format": "research" if is_research else "vLLM",
        "heads": num_heads,
        "residual blocks of a head": num_layers,
        "bias": has_bias,
        "shared output head": is_shared,
        "draft vocabulary": rows or "the target's, with its head",
    }


def _resolve_target(facts: _Facts, result: Inspection) -> None:
    vocab, hidden = facts.shape("embed_tokens.weight", None, None)
    result.vocab_size = facts.same("vocab_size", facts.size("vocab_size"), vocab)
    result.hidden_size = facts.same("hidden_size", facts.size("hidden_size"), hidden)
    if "lm_head.weight" in facts.names:
        facts.shape("lm_head.weight", vocab, hidden)
    result.options |= {
        "model type": facts.config.get("model_type"),
        "layers": facts.size("num_hidden_layers"),
        "heads": facts.size("num_attention_heads"),
        "KV heads": facts.size("num_key_value_heads", "num_attention_heads"),
        "tied embeddings": "lm_head.weight" not in facts.names,
        "layers for multi-token prediction": result.mtp_tensor,
    }
    if result.mtp_tensor is not None:
        result.options["norm_target_state"] = norms_target_state(facts.config)


def norms_target_state(config: Mapping[str, Any]) -> bool:
    """Whether layers for multi-token prediction read the target's state after its final norm.

    As the engine decides it, by the target's family.
    """
    architectures = config.get("architectures")
    return config.get("model_type") != "mimo" and architectures != ["MiMoForCausalLM"]


def _resolve_by_config(facts: _Facts, result: Inspection) -> None:
    result.hidden_size = facts.size("target_hidden_size", "hidden_size")
    result.vocab_size = facts.size("vocab_size")
    result.options["layers"] = facts.size("num_nextn_predict_layers", "num_hidden_layers")


_RESOLVERS = {
    "target": _resolve_target,
    "eagle": _resolve_eagle,
    "eagle3": _resolve_eagle3,
    "peagle": _resolve_eagle3,
    "mlp_speculator": _resolve_mlp_speculator,
    "medusa": _resolve_medusa,
    "mtp": _resolve_by_config,
    "dflash": _resolve_by_config,
    "dspark": _resolve_by_config,
}
