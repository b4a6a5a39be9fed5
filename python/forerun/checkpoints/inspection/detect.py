"""Which kind of model a set of tensors is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from forerun.checkpoints.inspection.tensors import TensorInfo
from forerun.errors import CheckpointError

Tensors = Mapping[str, TensorInfo]

_PREFIX = re.compile(r"^(model\.|language_model\.|speculator\.|medusa_heads\.|draft_model\.)+")
_MEDUSA_RESEARCH = re.compile(r"\d+\.\d+\.linear\.weight")
_MEDUSA_BLOCKS = re.compile(r"blocks\.\d+\.layers\.\d+\.weight")
_MTP = re.compile(
    r"layers\.\d+\.eh_proj\.weight|mtp\.fc\.weight|mtp_layers\.\d+\.input_proj\.weight"
    r"|mtp_linear_proj\.\d+\.weight|mtp\.(layers\.\d+\.)?eh_proj\.weight"
)
# What a config may call a drafter, by the method it then is.
_MODEL_TYPES = {"medusa": "medusa", "mlp_speculator": "mlp_speculator", "eagle": "eagle"}
_SPECULATORS_TYPES = {
    "eagle3": "eagle3",
    "peagle": "peagle",
    "eagle": "eagle",
    "dflash": "dflash",
    "dflash2": "dflash",
    "dspark": "dspark",
    "mtp": "mtp",
}


@dataclass(frozen=True)
class Finding:
    """A method, and the tensors that tell it."""

    method: str
    evidence: str


def strip_prefixes(tensors: Tensors) -> dict[str, TensorInfo]:
    """The same tensors by the names that all writers of a format agree on."""
    stripped: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        short = _PREFIX.sub("", name)
        short = re.sub(r"^midlayer\.", "layers.0.", short)
        if short in stripped:
            raise CheckpointError(short, "there twice, with and without a prefix", "one of them")
        stripped[short] = tensor
    return stripped


def detect(names: Tensors) -> Finding:
    """The method that the tensors (of strip_prefixes) are for; "target" for a whole language model.

    Raises:
        CheckpointError: no format has such tensors.
    """

    def any_match(pattern: re.Pattern[str]) -> str | None:
        return next((name for name in names if pattern.fullmatch(name)), None)

    rules: list[tuple[str, Callable[[], str | None]]] = [
        (
            "mlp_speculator",
            lambda: "forget_emb.0.weight" if "forget_emb.0.weight" in names else None,
        ),
        ("mlp_speculator", lambda: _mlp_evidence(names)),
        ("medusa", lambda: any_match(_MEDUSA_RESEARCH) or any_match(_MEDUSA_BLOCKS)),
        ("dspark", lambda: _first(names, "markov_head.")),
        ("peagle", lambda: _eagle3_evidence(names) if "mask_hidden" in names else None),
        ("eagle3", lambda: _eagle3_evidence(names)),
        ("dflash", lambda: _dflash_evidence(names)),
        ("eagle", lambda: _eagle_evidence(names)),
        ("target", lambda: _language_model_evidence(names)),
        ("mtp", lambda: mtp_layers(names)),
    ]
    for method, evidence in rules:
        if (found := evidence()) is not None:
            return Finding(method, found)
    some = ", ".join(sorted(names)[:4])
    raise CheckpointError(
        "tensors", f"{some}, ...", "a language model or a drafter of a known format"
    )


def _first(names: Tensors, prefix: str) -> str | None:
    return next((name for name in names if name.startswith(prefix)), None)


def _mlp_evidence(names: Tensors) -> str | None:
    # Arctic's may be sequences of modules.
    is_there = all(
        f"{kind}.0.weight" in names or f"{kind}.0.0.weight" in names for kind in ("emb", "proj")
    )
    return "emb, proj and head" if is_there and "head.0.weight" in names else None


def _q_proj(names: Tensors) -> TensorInfo | None:
    return names.get("layers.0.self_attn.q_proj.weight")


def _eagle3_evidence(names: Tensors) -> str | None:
    o_proj, q_proj = names.get("layers.0.self_attn.o_proj.weight"), _q_proj(names)
    if o_proj is None or q_proj is None or "layers.0.hidden_norm.weight" not in names:
        return None
    if len(q_proj.shape) != 2 or q_proj.shape[1] != 2 * o_proj.shape[0]:
        return None
    return "a hidden_norm in layer 0, and projections of twice the width"


def _dflash_evidence(names: Tensors) -> str | None:
    is_there = all(n in names for n in ("hidden_norm.weight", "fc.weight"))
    return "hidden_norm beside fc" if is_there else None


def _eagle_evidence(names: Tensors) -> str | None:
    fc = names.get("fc.weight")
    if fc is None or len(fc.shape) != 2 or fc.shape[1] != 2 * fc.shape[0]:
        return None
    absent = ("layers.0.input_layernorm.weight", "norm.weight", "lm_head.weight")
    if _q_proj(names) is None or any(name in names for name in absent):
        return None
    return "fc of twice the width, no first norm, no head"


def _language_model_evidence(names: Tensors) -> str | None:
    needed = ("embed_tokens.weight", "norm.weight", "layers.0.self_attn.o_proj.weight")
    return "embedding, layers and final norm" if all(n in names for n in needed) else None


def mtp_layers(names: Tensors) -> str | None:
    """The tensor that shows that a target has layers for multi-token prediction."""
    return next((name for name in names if _MTP.fullmatch(name)), None)


def claimed_method(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The method that a config states, with where it states it; None where it leaves it open."""
    if (kind := config.get("speculators_model_type")) is not None:
        if not isinstance(kind, str) or kind not in _SPECULATORS_TYPES:
            expected = ", ".join(_SPECULATORS_TYPES)
            raise CheckpointError("speculators_model_type", kind, f"one of {expected}")
        return _SPECULATORS_TYPES[kind], f"speculators_model_type {kind}"
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _MODEL_TYPES:
        return _MODEL_TYPES[model_type], f"model_type {model_type}"
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError("architectures", repr(architectures), "a list of names")
    for architecture in architectures:
        if "eagle3" in str(architecture).lower():
            return "eagle3", f"architecture {architecture}"
        if str(architecture).startswith(("Arctic", "MLPSpeculator", "MLPVariant")):
            return "mlp_speculator", f"architecture {architecture}"
    return None
