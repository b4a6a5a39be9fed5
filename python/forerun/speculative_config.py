"""How drafts are made, under vLLM's names where they mean the same."""

from __future__ import annotations

import ast
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from forerun import _core
from forerun.errors import InvalidArgumentError
from forerun.util.checks import (
    Problems,
    check_bool,
    check_choice,
    check_core,
    check_dict,
    check_ids,
    check_int,
    check_list,
    check_name,
    check_number,
    check_path,
    check_quantization,
    check_str,
)
from forerun.vllm_fields import SPECULATIVE_CONFIG
from forerun.vllm_fields.arguments import checked_keywords

MODEL_METHODS = ("draft_model", "eagle", "eagle3", "mtp", "mlp_speculator", "medusa")
METHODS = ("ngram", "suffix", "grammar", *MODEL_METHODS, "hybrid")
ACCEPTANCE_METHODS = ("coupled", "rejection", "block")
DRAFT_SAMPLE_METHODS = ("greedy", "probabilistic")

# What vLLM calls "mtp", by the family of the target.
_MTP_NAMES = frozenset(
    f"{family}_mtp"
    for family in (
        *("deepseek", "mimo", "mimo_v2", "glm4_moe", "glm4_moe_lite", "glm_ocr", "ernie"),
        *("qwen3_next", "qwen3_5", "longcat_flash", "exaone_moe", "nemotron_h", "step3p5"),
        *("pangu_ultra_moe", "dots3_note", "exaone4_5", "qwen4_exp", "bailing_hybrid"),
        *("bailing_hybrid_v3", "minimax_m3", "kimi_k3", "hy_v3", "hy_v4", "gemma4", "inkling"),
        *("glm5_next",),
    )
)
REJECTION_SAMPLE_METHODS = ("standard", "block")
_NOT_RUN = {
    "dflash": "DFlash drafts a block in one pass, which does not run",
    "dspark": "DSpark drafts a block in one pass, which does not run",
    "extract_hidden_states": "hidden states are not an output",
    "custom_class": "drafters are not loaded from Python classes",
}
_LOGGER = logging.getLogger("forerun")
_Check = Callable[[str, Any], Any]
_T = TypeVar("_T")
_MethodOptions = (
    _core.NgramOptions
    | _core.SuffixOptions
    | _core.GrammarOptions
    | _core.ModelDrafterOptions
    | _core.HybridOptions
)


def _check_layers(field: str, value: Any) -> list[int]:
    return check_ids(field, value, "a list of layers of the target")


def _check_paths(field: str, value: Any) -> list[list[int]]:
    """Paths of ranks; the core says whether they are a tree."""
    expected = "paths of ranks, as in [(0,), (1,), (0, 0)]"
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise InvalidArgumentError(field, value, expected) from error
    paths = check_list(field, value, expected)
    if not paths:
        raise InvalidArgumentError(field, value, expected)
    return [check_ids(field, path, expected) for path in paths]


def _check_model(field: str, value: Any) -> str:
    check_path(field, value, "a directory, a hub id or None")
    return str.__str__(os.fspath(value))


def _check_quantization(field: str, value: Any) -> str | dict[str, str | None]:
    check_quantization(field, value)
    return str.__str__(value) if isinstance(value, str) else dict(value)


def _check_rejection(field: str, value: Any) -> str:
    if check_str(field, value) == "synthetic":
        raise InvalidArgumentError(
            field, value, "'standard' or 'block': acceptance is measured, never simulated"
        )
    return check_choice(field, value, REJECTION_SAMPLE_METHODS)


# Fields of SpeculativeConfig that are options of the engine, by the group that has them.
_NGRAM_FIELDS: dict[str, _Check] = {
    "prompt_lookup_max": check_int,
    "prompt_lookup_min": check_int,
}
_SUFFIX_PREFIX = "suffix_decoding_"
_SUFFIX_FIELDS: dict[str, _Check] = {
    "suffix_decoding_max_tree_depth": check_int,
    "suffix_decoding_max_cached_requests": check_int,
    "suffix_decoding_max_spec_factor": check_number,
    "suffix_decoding_min_token_prob": check_number,
    "suffix_decoding_use_tree": check_bool,
}
_MODEL_FIELDS: dict[str, _Check] = {
    "model": _check_model,
    "draft_tree_width": check_int,
    "draft_tree_depth": check_int,
    "draft_vocab_size": check_int,
    "speculative_token_tree": _check_paths,
    "aux_hidden_state_layer_ids": _check_layers,
    "norm_output": check_bool,
    "norm_before_residual": check_bool,
    "norm_target_state": check_bool,
}
_CHECKS: dict[str, _Check] = {
    "method": check_str,
    "num_speculative_tokens": check_int,
    "revision": check_name,
    "adaptive": check_bool,
    "acceptance_method": lambda name, value: check_choice(name, value, ACCEPTANCE_METHODS),
    "draft_sample_method": lambda name, value: check_choice(name, value, DRAFT_SAMPLE_METHODS),
    "rejection_sample_method": _check_rejection,
    "use_heterogeneous_vocab": check_bool,
    "quantization": _check_quantization,
    "max_model_len": lambda name, value: check_int(name, value, least=1),
    **_NGRAM_FIELDS,
    **_SUFFIX_FIELDS,
    **_MODEL_FIELDS,
}
_NEVER_NONE = ("adaptive", "acceptance_method", "draft_sample_method")
# Which fields only some methods have.
HEAD_FIELDS = {
    "aux_hidden_state_layer_ids": "eagle3",
    "norm_output": "eagle3",
    "norm_before_residual": "eagle3",
    "norm_target_state": "mtp",
}
_NEED_A_MODEL = (
    *(_MODEL_FIELDS.keys() - {"model"}),
    "revision",
    "use_heterogeneous_vocab",
    "quantization",
)


@checked_keywords
@dataclass(kw_only=True)
class SpeculativeConfig:
    """How drafts are made. Wrong values raise InvalidArgumentError at once.

    Attributes:
        method: "ngram" continues an earlier occurrence of the last tokens of the request's own
            text; "suffix" also learns from past outputs and drafts as long as it is confident;
            "grammar" drafts only what the structured output of a request forces, which the others
            do too. "draft_model", "eagle", "eagle3", "mtp", "mlp_speculator" and "medusa" run the
            `model`; with a model and no method, the method is detected from its tensors. "hybrid"
            combines "suffix" with a model, whose method is detected; without a model, with the
            target's own layers ("mtp").
        num_speculative_tokens: the most tokens drafted per step, in a chain or a tree. "ngram"
            needs it; where it is absent, "suffix" takes its tree depth, "grammar" 16, and a model
            what its checkpoint says, else 4, in a tree 16, or as many as a fixed one has; "hybrid"
            24.
        prompt_lookup_max: ngram: the longest run of last tokens to look for.
        prompt_lookup_min: ngram: the shortest. Where one of the two is absent it equals the other;
            where both are, they are 5.
        suffix_decoding_max_tree_depth: suffix: match plus draft are never longer.
        suffix_decoding_max_cached_requests: suffix: how many past outputs to learn from.
        suffix_decoding_max_spec_factor: suffix: a draft is at most this many times its match.
        suffix_decoding_min_token_prob: suffix: tokens less probable are not drafted.
        suffix_decoding_use_tree: suffix: draft the most probable continuations of all the match's
            suffixes as a tree; otherwise the one best continuation. No field of vLLM's.
        adaptive: shorten drafts where measured acceptance and cost predict no saving.
        acceptance_method: the rule that accepts draft tokens. "coupled": those that decoding
            without drafts samples; the ids are the same with and without speculation.
            "rejection" (rejection sampling) and "block" (block verification): the ids differ, their
            distribution does not. At temperature 0 all three give the same ids.
        draft_sample_method: "greedy" drafts the most probable. "probabilistic" samples chains
            from a model's probabilities, which "rejection" and "block" then know.
        model: the drafter: a directory, a .gguf file (of a draft model) or a hub id; None with
            "mtp": the target's own layers. "ngram" is vLLM's older spelling of that method.
        revision: the branch, tag or commit of a drafter on the hub.
        draft_tree_width: models: how many candidates of each level are kept; 1 drafts a chain. Not
            a field of vLLM's, nor are those that follow but speculative_token_tree.
        draft_vocab_size: models: how many tokens are drafted from: the first of hot_tokens.json in
            the drafter's directory, else those with the lowest ids; None: all of that file, or of
            the drafter's. Not a field of vLLM's.
        draft_tree_depth: models: the most levels of a tree; None: as many as tokens, in a tree at
            most 6, and in a chain of a "hybrid" at most 4.
        speculative_token_tree: models: a tree of fixed shape instead of one that grows by
            probabilities: paths of ranks, 0 the most probable, as a list or as text, as in
            [(0,), (1,), (0, 0)].
        aux_hidden_state_layer_ids: eagle3: the target's layers that it reads, each by how many are
            before it; None: what the checkpoint says, else the usual three.
        norm_output: eagle3: whether the next step gets the normed state; None: as the checkpoint
            says.
        norm_before_residual: eagle3: whether the residual is the normed state; None likewise.
        norm_target_state: mtp: whether the first draft token reads the target's state after its
            final norm; None: as the target's family does (MiMo: no, others: yes).
        use_heterogeneous_vocab: draft_model: whether it may have another vocabulary than the
            target's; only tokens that both have are drafted then. None means True.
        quantization: models: for the drafter's matrices, as LLM's; {}: as its checkpoint has them;
            None: "int8" for floats, unless the target is in float32; integers stay as they are,
            unless the target's are unpacked by "none".
        rejection_sample_method: vLLM's name for acceptance_method: "standard" keeps it, "block" is
            "block".
        max_model_len: a limit of the drafter's, at least the target's max_model_len, and without
            effect: a drafter goes as far as its target.

    The other fields of vLLM accept what has one meaning here: docs/vllm_compatibility.md.
    """

    method: str | None = None
    num_speculative_tokens: int | None = None
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None
    suffix_decoding_max_tree_depth: int | None = None
    suffix_decoding_max_cached_requests: int | None = None
    suffix_decoding_max_spec_factor: float | None = None
    suffix_decoding_min_token_prob: float | None = None
    suffix_decoding_use_tree: bool | None = None
    adaptive: bool = True
    acceptance_method: str = "coupled"
    draft_sample_method: str = "greedy"
    model: str | os.PathLike[str] | None = None
    revision: str | None = None
    draft_tree_width: int | None = None
    draft_tree_depth: int | None = None
    draft_vocab_size: int | None = None
    speculative_token_tree: str | Sequence[Sequence[int]] | None = None
    aux_hidden_state_layer_ids: Sequence[int] | None = None
    norm_output: bool | None = None
    norm_before_residual: bool | None = None
    norm_target_state: bool | None = None
    use_heterogeneous_vocab: bool | None = None
    quantization: str | Mapping[str, str | None] | None = None
    rejection_sample_method: str | None = None
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        """Checks every field and settles the ones that depend on each other."""
        problems = Problems()
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None or name in _NEVER_NONE:
                with problems:
                    setattr(self, name, check(name, value))
        problems.raise_all()
        with problems:
            self._settle_method()
        problems.raise_all()
        self._refuse_options_of_other_methods(problems)
        with problems:
            self._settle_acceptance()
        if self.method == "ngram":
            with problems:
                self._settle_ngram()
        problems.raise_all()
        left_out: set[str] = set()

        def leave_out(name: str) -> bool:
            is_new = name not in left_out
            left_out.add(name)
            return is_new

        check_core(
            problems,
            lambda: _core.check_speculative_options(self._to_core(left_out)),
            leave_out,
        )
        problems.raise_all()

    @property
    def uses_model(self) -> bool:
        """Whether a drafter must be loaded."""
        return self.method in (None, "hybrid", *MODEL_METHODS)

    def check_length(self, target: int | None) -> None:
        """Refuses a limit below the target's; None: the target's length is not known."""
        own = self.max_model_len
        if own is not None and target is not None and own < target:
            raise InvalidArgumentError(
                "max_model_len",
                own,
                f"at least the target's, {target}: a drafter goes as far as its target",
            )

    def _settle_method(self) -> None:
        if self.model in ("ngram", "[ngram]") and self.method in (None, "ngram"):
            self.method = "ngram"
            self.model = None
        if self.method in _MTP_NAMES:
            self.method = "mtp"
        if self.method == "ngram_gpu":
            self.method = "ngram"
            _LOGGER.info("method 'ngram_gpu' runs as 'ngram', on the CPU")
        if self.method in _NOT_RUN:
            raise InvalidArgumentError("method", self.method, f"another: {_NOT_RUN[self.method]}")
        if self.method is None and self.model is not None:
            return  # to be detected from the model
        listed = ", ".join(repr(method) for method in METHODS[:-1])
        if self.method not in METHODS:
            hint = "" if self.method is not None else ", or a model"
            raise InvalidArgumentError("method", self.method, f"{listed} or {METHODS[-1]!r}{hint}")
        if not self.uses_model and self.model is not None:
            raise InvalidArgumentError(
                "model", os.fspath(self.model), f"None: {self.method!r} runs no model"
            )
        if self.model is None and self.method in MODEL_METHODS and self.method != "mtp":
            raise InvalidArgumentError(
                "model", None, f"the directory or hub id of a drafter with {self.method!r}"
            )

    def _refuse_options_of_other_methods(self, problems: Problems) -> None:
        owners = {"prompt_lookup": ("ngram",), "suffix_decoding": ("suffix", "hybrid")}
        others = tuple(prefix for prefix, methods in owners.items() if self.method not in methods)
        for field in fields(self):
            value = getattr(self, field.name)
            is_foreign = field.name.startswith(others) or (
                field.name in _NEED_A_MODEL and not self.uses_model
            )
            if (
                is_foreign
                and value is not None
                and not SPECULATIVE_CONFIG[field.name].is_default(value)
            ):
                method = f"{self.method!r}" if self.method is not None else "a model"
                problems.errors.append(
                    InvalidArgumentError(field.name, value, f"no such option with {method}")
                )

    def _settle_acceptance(self) -> None:
        if self.rejection_sample_method == "block":
            if self.acceptance_method == "rejection":
                raise InvalidArgumentError(
                    "rejection_sample_method", "block", "None beside acceptance_method='rejection'"
                )
            self.acceptance_method = "block"
        if self.rejection_sample_method == "standard" and self.acceptance_method == "block":
            raise InvalidArgumentError(
                "rejection_sample_method", "standard", "None beside acceptance_method='block'"
            )
        if self.draft_sample_method == "probabilistic" and not self.uses_model:
            raise InvalidArgumentError(
                "draft_sample_method", "probabilistic", f"'greedy' with method {self.method!r}"
            )

    def _settle_ngram(self) -> None:
        if self.num_speculative_tokens is None:
            raise InvalidArgumentError(
                "num_speculative_tokens", None, "an integer of at least 1 with method 'ngram'"
            )
        if self.prompt_lookup_max is None:
            self.prompt_lookup_max = self.prompt_lookup_min or 5
        if self.prompt_lookup_min is None:
            self.prompt_lookup_min = self.prompt_lookup_max

    def _to_core(self, left_out: Collection[str] = ()) -> _core.SpeculativeOptions:
        """Engine options without the drafter, which is detected once the target is known.

        Args:
            left_out: fields that keep the engine's defaults.
        """
        core = _core.SpeculativeOptions()
        if self.num_speculative_tokens is not None and "num_speculative_tokens" not in left_out:
            core.num_speculative_tokens = self.num_speculative_tokens
        core.adaptive = self.adaptive
        core.acceptance_method = getattr(_core.AcceptanceMethod, self.acceptance_method.upper())
        core.method = self._method_to_core(left_out)
        return core

    def _method_to_core(self, left_out: Collection[str]) -> _MethodOptions:
        if self.method == "ngram":
            return self._fill(_core.NgramOptions(), _NGRAM_FIELDS, left_out)
        if self.method == "suffix":
            return self._fill(_core.SuffixOptions(), _SUFFIX_FIELDS, left_out)
        if self.method == "grammar":
            return _core.GrammarOptions()
        model = self._fill(_core.ModelDrafterOptions(), _MODEL_FIELDS, left_out)
        if self.quantization is not None:
            model.quantization = check_quantization("quantization", self.quantization)
        if self.method in MODEL_METHODS:
            model.method = getattr(_core.ModelMethod, self.method.upper())
        if "draft_sample_method" not in left_out:
            sampled = self.draft_sample_method.upper()
            model.draft_sample_method = getattr(_core.DraftSampleMethod, sampled)
        if self.method != "hybrid":
            return model
        hybrid = _core.HybridOptions()
        hybrid.model = model
        hybrid.suffix = self._fill(_core.SuffixOptions(), _SUFFIX_FIELDS, left_out)
        return hybrid

    def _fill(self, core: _T, names: Iterable[str], left_out: Collection[str]) -> _T:
        for name in names:
            value = getattr(self, name)
            if value is not None and name not in left_out:
                setattr(core, name.removeprefix(_SUFFIX_PREFIX), value)
        return core


def make_speculative_config(
    value: SpeculativeConfig | Mapping[str, Any] | None,
) -> SpeculativeConfig | None:
    """A checked config from a dict, as vLLM takes it, or from a config."""
    if value is None:
        return None
    if isinstance(value, SpeculativeConfig):
        return replace(value)  # checked again, for it may have been changed
    fields = check_dict("speculative_config", value, "a SpeculativeConfig, a dict or None")
    for name in fields:
        check_str("speculative_config", name)
    return SpeculativeConfig(**fields)
