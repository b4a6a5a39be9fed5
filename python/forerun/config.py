"""How an engine is set up, under vLLM's names where they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from forerun import _core
from forerun.checks import (
    check_bool,
    check_int,
    check_number,
    check_one_of,
    check_str,
    reject_unknown,
)
from forerun.errors import InvalidArgumentError
from forerun.speculative_config import SpeculativeConfig

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
