"""How an engine is set up, under vLLM's names where they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from forerun import _core
from forerun.checks import (
    check_bool,
    check_int,
    check_number,
    check_one_of,
    check_str,
    checked_keywords,
    reject_unknown,
)
from forerun.errors import InvalidArgumentError

METHODS = ("ngram", "suffix", "grammar")
ACCEPTANCE_METHODS = ("coupled", "rejection", "block")
DRAFT_SAMPLE_METHODS = ("greedy", "probabilistic")


@checked_keywords
@dataclass(kw_only=True)
class SpeculativeConfig:
    """How drafts are made. Wrong values raise InvalidArgumentError at once.

    Attributes:
        method: "ngram" continues an earlier occurrence of the last tokens of the request's own
            text; "suffix" also learns from past outputs and drafts as long as it is confident;
            "grammar" drafts only what the structured output of a request forces, which the others
            do too.
        num_speculative_tokens: the most tokens drafted per step, in a chain or a tree. "ngram"
            needs it; where it is absent, "suffix" takes its tree depth and "grammar" 16.
        prompt_lookup_max: ngram: the longest run of last tokens to look for.
        prompt_lookup_min: ngram: the shortest. Where one of the two is absent it equals the other;
            where both are, they are 5.
        suffix_decoding_max_tree_depth: suffix: match plus draft are never longer.
        suffix_decoding_max_cached_requests: suffix: how many past outputs to learn from.
        suffix_decoding_max_spec_factor: suffix: a draft is at most this many times its match.
        suffix_decoding_min_token_prob: suffix: tokens less probable are not drafted.
        suffix_decoding_use_tree: suffix: draft the most probable continuations of all the match's
            suffixes as a tree; otherwise the one best continuation. No field of vLLM's.
        adaptive: shorten drafts where measured acceptance and cost say they do not pay.
        acceptance_method: when a guess is accepted. "coupled": when it is the token that decoding
            without drafts samples, so the ids are the same with and without speculation.
            "rejection" (rejection sampling) and "block" (block verification): the ids differ, their
            distribution does not. At temperature 0 all three give the same ids.
        draft_sample_method: "greedy". "probabilistic" needs a method with probabilities to draw its
            guesses from, which neither "ngram" nor "suffix" is.
        model: vLLM's older spelling of the method: "ngram".
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
    model: str | None = None

    def __post_init__(self) -> None:
        """Checks every field and settles the ones that depend on each other."""
        if self.model is not None:
            check_one_of(
                "model", self.model, ["ngram", "[ngram]"], "draft models are not supported yet"
            )
        if self.method is None and self.model is not None:
            self.method = "ngram"
        valid = ", ".join(repr(method) for method in METHODS[:-1]) + f" or {METHODS[-1]!r}"
        if self.method not in METHODS:
            raise InvalidArgumentError("method", self.method, valid)
        self._refuse_options_of_other_methods()
        if self.method == "ngram":
            self._settle_ngram()
        options = _core.EngineOptions()
        options.model = "-"  # only the speculative part is checked here
        options.speculative = self._to_core()
        _core.check_engine_options(options)

    def _refuse_options_of_other_methods(self) -> None:
        methods = {"prompt_lookup": "ngram", "suffix_decoding": "suffix"}
        others = tuple(prefix for prefix, method in methods.items() if method != self.method)
        for field in fields(self):
            if field.name.startswith(others) and getattr(self, field.name) is not None:
                raise InvalidArgumentError(
                    field.name, getattr(self, field.name), f"no such option with {self.method!r}"
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

    def _to_core(self) -> _core.SpeculativeOptions:
        core = _core.SpeculativeOptions()
        core.method = getattr(_core.SpeculativeMethod, str(self.method).upper())
        core.adaptive = check_bool("adaptive", self.adaptive)
        core.acceptance_method = getattr(
            _core.AcceptanceMethod,
            _name_of("acceptance_method", self.acceptance_method, ACCEPTANCE_METHODS),
        )
        core.draft_sample_method = getattr(
            _core.DraftSampleMethod,
            _name_of("draft_sample_method", self.draft_sample_method, DRAFT_SAMPLE_METHODS),
        )
        for ours, theirs, check in (
            ("num_speculative_tokens",) * 2 + (check_int,),
            ("prompt_lookup_max",) * 2 + (check_int,),
            ("prompt_lookup_min",) * 2 + (check_int,),
            ("suffix_decoding_max_tree_depth", "suffix_max_tree_depth", check_int),
            ("suffix_decoding_max_cached_requests", "suffix_max_cached_requests", check_int),
            ("suffix_decoding_max_spec_factor", "suffix_max_spec_factor", check_number),
            ("suffix_decoding_min_token_prob", "suffix_min_token_prob", check_number),
            ("suffix_decoding_use_tree", "suffix_use_tree", check_bool),
        ):
            value = getattr(self, ours)
            if value is not None:
                setattr(core, theirs, check(ours, value))
        return core


def _name_of(field: str, value: Any, choices: tuple[str, ...]) -> str:
    """The enumerator's name of one of the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices[:-1])
        raise InvalidArgumentError(field, value, f"{listed} or {choices[-1]!r}")
    return value.upper()


def make_speculative_config(
    value: SpeculativeConfig | Mapping[str, Any] | None,
) -> SpeculativeConfig | None:
    """A checked config from a dict, as vLLM takes it, or from a config."""
    if value is None or isinstance(value, SpeculativeConfig):
        return value
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(
            "speculative_config", value, "a SpeculativeConfig, a dict or None"
        )
    return SpeculativeConfig(**value)


# vLLM's options with one possible meaning here: the values that ask for it, and why.
_ONE_MACHINE = "this engine runs in one process on one machine"
_COMPATIBLE: dict[str, tuple[tuple[Any, ...], str]] = {
    "tensor_parallel_size": ((1,), _ONE_MACHINE),
    "pipeline_parallel_size": ((1,), _ONE_MACHINE),
    "data_parallel_size": ((1,), _ONE_MACHINE),
    "trust_remote_code": ((False, True), "no code of a model is ever run"),
    "enforce_eager": ((False, True), "there are no graphs to capture"),
    "disable_log_stats": ((False, True), "counters are always kept and never logged"),
    "enable_chunked_prefill": ((None, True), "prompts are always computed in chunks"),
    "tokenizer_mode": (("auto",), "there is one kind of tokenizer"),
    "load_format": (("auto", "safetensors"), "weights are read from safetensors"),
    "quantization": ((None,), "quantized weights are not supported yet"),
    "kv_cache_dtype": (("auto",), "the KV cache has the weights' dtype"),
    "device": (("auto", "cpu"), "this engine runs on the CPU"),
}
_ENGINE_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "dtype": check_str,
    "max_model_len": check_int,
    "max_num_seqs": check_int,
    "max_num_batched_tokens": check_int,
    "block_size": check_int,
    "enable_prefix_caching": check_bool,
    "kv_cache_memory_bytes": lambda name, value: check_int(name, value, most=2**63 - 1),
    "seed": lambda name, value: check_int(name, value, least=0, most=2**64 - 1),
    "num_threads": check_int,
    "check_invariants": check_bool,
}
# None is the default, as in vLLM.
_MAY_BE_NONE = {
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "enable_prefix_caching",
    "kv_cache_memory_bytes",
    "seed",
}


def engine_options(
    options: Mapping[str, Any], speculative: SpeculativeConfig | None
) -> _core.EngineOptions:
    """Engine options from keywords; vLLM's other keywords are checked for what they ask."""
    known = [*_ENGINE_OPTIONS, *_COMPATIBLE, "gpu_memory_utilization"]
    reject_unknown(options, known, "LLM")
    core = _core.EngineOptions()
    for name, value in options.items():
        if name in _ENGINE_OPTIONS:
            if value is None and name in _MAY_BE_NONE:
                continue
            value = str(value).removeprefix("torch.") if name == "dtype" else value
            setattr(core, name, _ENGINE_OPTIONS[name](name, value))
        elif name in _COMPATIBLE:
            check_one_of(name, value, *_COMPATIBLE[name])
        else:
            _check_gpu_memory_utilization(value)
    if speculative is not None:
        core.speculative = speculative._to_core()
    return core


def _check_gpu_memory_utilization(value: Any) -> None:
    import logging

    if not 0 < check_number("gpu_memory_utilization", value) <= 1:
        raise InvalidArgumentError("gpu_memory_utilization", value, "a fraction in (0, 1]")
    logging.getLogger("forerun").warning(
        "gpu_memory_utilization=%s has no effect on the CPU; kv_cache_memory_bytes sets the size "
        "of the KV cache",
        value,
    )
