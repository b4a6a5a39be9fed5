"""How an engine is set up, under vLLM's names where they mean the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from forerun import _core
from forerun.engine.profiling import profile_directory
from forerun.errors import InvalidArgumentError, shown
from forerun.speculative_config import SpeculativeConfig, make_speculative_config
from forerun.util.checks import (
    Problems,
    check_bool,
    check_choice,
    check_core,
    check_dict,
    check_int,
    check_name,
    check_number,
    check_path,
    check_quantization,
)
from forerun.vllm_fields import ENGINE_ARGS, field_problems

_LOGGER = logging.getLogger("forerun")
_FLOAT16 = ("float16", "half")


def _check_dtype(field: str, value: Any) -> str:
    """A name of a dtype, or one of torch's dtypes; float16 becomes what engines compute in."""
    is_torch = type(value).__module__ == "torch"
    name = shown(value).removeprefix("torch.") if is_torch else value
    name = check_choice(field, name, ("auto", "bfloat16", "float32", *_FLOAT16, "float"))
    if name == "float":
        return "float32"
    if name not in _FLOAT16:
        return name
    _LOGGER.warning(
        "%s=%s: nothing is computed in float16; checkpoints in bfloat16 run in bfloat16, others in "
        "float32, which holds float16 exactly",
        field,
        shown(value),
    )
    return "auto"


def _check_kv_cache_dtype(name: str, value: Any) -> str:
    choices = ("auto", "bfloat16", "float32", "int8", "int8_per_token_head")
    return check_choice(name, value, choices).removesuffix("_per_token_head")


def _check_fraction(name: str, value: Any) -> float:
    fraction = check_number(name, value)
    if not 0 < fraction <= 1:
        raise InvalidArgumentError(name, value, "a fraction in (0, 1]")
    return fraction


_ENGINE_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "device": lambda name, value: check_choice(
        name,
        value,
        ("auto", "cpu", "cuda"),
        ", the first GPU (CUDA_VISIBLE_DEVICES chooses it)",
    ),
    "dtype": _check_dtype,
    "quantization": check_quantization,
    "kv_cache_dtype": _check_kv_cache_dtype,
    "max_model_len": check_int,
    "max_num_seqs": check_int,
    "max_waiting_requests": check_int,
    "max_num_batched_tokens": check_int,
    "block_size": check_int,
    "enable_prefix_caching": check_bool,
    "scheduling_policy": lambda name, value: getattr(
        _core.SchedulingPolicy, check_choice(name, value, ("fcfs", "priority")).upper()
    ),
    "kv_cache_memory_bytes": lambda name, value: check_int(name, value, most=2**63 - 1),
    "gpu_memory_utilization": _check_fraction,
    "enforce_eager": check_bool,
    "seed": lambda name, value: check_int(name, value, least=0, most=2**64 - 1),
    "num_threads": check_int,
    "check_invariants": check_bool,
    "verify_device": lambda name, value: check_choice(name, value, ("cpu", "cuda")),
}
# None is the default, as in vLLM.
_MAY_BE_NONE = {
    "quantization",
    "max_model_len",
    "max_num_seqs",
    "max_waiting_requests",
    "max_num_batched_tokens",
    "block_size",
    "enable_prefix_caching",
    "kv_cache_memory_bytes",
    "seed",
}
_GRAMMAR_BACKENDS = ("auto", "guidance", "xgrammar", "outlines", "lm-format-enforcer")
_SHORTHANDS = {
    "spec_method": "method",
    "spec_model": "model",
    "spec_tokens": "num_speculative_tokens",
}


def _check_generation_config(field: str, value: Any) -> None:
    expected = "'auto', 'vllm' or a directory with generation_config.json"
    path = check_path(field, value, expected)
    if str(path) not in ("auto", "vllm") and not os.path.isfile(path / "generation_config.json"):
        raise InvalidArgumentError(field, value, expected)


def _check_structured_outputs_config(field: str, value: Any) -> None:
    """Accepts every backend of vLLM's: each accepts the same texts of a grammar."""
    given = check_dict(field, value, "a dict of StructuredOutputsConfig's fields")
    problems = Problems()
    problems.errors.extend(field_problems("StructuredOutputsConfig", given))
    with problems:
        backend = check_choice("backend", given.get("backend", "auto"), _GRAMMAR_BACKENDS)
    problems.raise_all()
    if backend not in ("auto", "guidance"):
        _LOGGER.warning("%s: llguidance is used in place of %s", field, backend)


def _check_processors(field: str, value: Any) -> None:
    from forerun.logits_processors import processor_classes

    processor_classes(field, value)


_LOADING: dict[str, Callable[[str, Any], Any]] = {
    "tokenizer": lambda name, value: check_path(name, value, "a directory, or None"),
    "suffix_memory": lambda name, value: check_path(name, value, "a file, or None"),
    "revision": check_name,
    "skip_tokenizer_init": check_bool,
    "generation_config": _check_generation_config,
    "override_generation_config": check_dict,
    "logits_processors": _check_processors,
    "structured_outputs_config": _check_structured_outputs_config,
    "profiler_config": profile_directory,
}


def settle_options(
    options: Mapping[str, Any],
) -> tuple[_core.EngineOptions, SpeculativeConfig | None]:
    """The engine's options and the speculative config that LLM's keywords set, without `model`.

    Raises InvalidArgumentError that lists everything that is wrong, before anything is loaded.
    """
    problems = Problems()
    rest = dict(options)
    speculative = None
    with problems:
        speculative = _speculative_config(rest)
    with problems:
        core = engine_options(rest, speculative)
    for name, check in _LOADING.items():
        value = rest.get(name)
        if value is not None or (name == "skip_tokenizer_init" and name in rest):
            with problems:
                check(name, value)
    problems.raise_all()
    if rest.get("suffix_memory") is not None and num_past_outputs(core) == 0:
        raise InvalidArgumentError(
            "suffix_memory",
            rest["suffix_memory"],
            "None, unless the method is 'suffix' or 'hybrid', which learn from past outputs, and "
            "suffix_decoding_max_cached_requests is above 0",
        )
    return core, speculative


def num_past_outputs(options: _core.EngineOptions) -> int:
    """How many past outputs the drafter learns from."""
    method = options.speculative.method
    if isinstance(method, _core.HybridOptions):
        method = method.suffix
    return method.max_cached_requests if isinstance(method, _core.SuffixOptions) else 0


def engine_options(
    options: Mapping[str, Any], speculative: SpeculativeConfig | None
) -> _core.EngineOptions:
    """Engine options from keywords; vLLM's other keywords are checked for what they ask.

    Raises InvalidArgumentError that lists everything that is wrong.
    """
    problems = Problems()
    problems.errors.extend(field_problems("LLM", options))
    core = _core.EngineOptions()
    for name, value in options.items():
        if name == "per_request_spec_decode_metrics":
            with problems:
                choices = ("none", "summary", "detailed")
                core.record_draft_steps = check_choice(name, value, choices) == "detailed"
        if name not in _ENGINE_OPTIONS or (value is None and name in _MAY_BE_NONE):
            continue
        with problems:
            setattr(core, name, _ENGINE_OPTIONS[name](name, value))
    if speculative is not None:
        core.speculative = speculative._to_core()
        limit = options.get("max_model_len")
        with problems:
            speculative.check_length(limit if type(limit) is int else None)
    check_core(problems, lambda: _core.check_engine_options(core), lambda name: _reset(core, name))
    problems.raise_all()
    _warn_of_no_effect(core)
    return core


def _speculative_config(options: dict[str, Any]) -> SpeculativeConfig | None:
    """The config that LLM's keywords ask for, which are taken out of the options."""
    value = options.pop("speculative_config", None)
    short = {theirs: options.pop(ours, None) for ours, theirs in _SHORTHANDS.items()}
    given = {name: item for name, item in short.items() if item is not None}
    if not given:
        return make_speculative_config(value)
    if value is not None:
        name = next(ours for ours, theirs in _SHORTHANDS.items() if theirs in given)
        raise InvalidArgumentError(name, given[_SHORTHANDS[name]], "None beside speculative_config")
    try:
        return make_speculative_config(given)
    except InvalidArgumentError as error:
        names = {theirs: ours for ours, theirs in _SHORTHANDS.items()}
        problems = [
            InvalidArgumentError(
                names.get(problem.field, problem.field), problem.value, problem.expected
            )
            for problem in error.problems
        ]
        raise InvalidArgumentError.of_all(problems) from error


def _reset(core: _core.EngineOptions, name: str) -> bool:
    default = getattr(_core.EngineOptions(), name, None)
    if not hasattr(core, name) or getattr(core, name) == default:
        return False
    setattr(core, name, default)
    return True


def _warn_of_no_effect(core: _core.EngineOptions) -> None:
    fraction = core.gpu_memory_utilization
    if core.device != "cuda" and fraction != ENGINE_ARGS["gpu_memory_utilization"].default:
        _LOGGER.warning(
            "gpu_memory_utilization=%s has no effect on the CPU; kv_cache_memory_bytes sets the "
            "size of the KV cache",
            fraction,
        )
