"""Forerun: speculative decoding that changes the speed of a language model and nothing else."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forerun.async_llm import AsyncLLM
    from forerun.beam_search import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
    from forerun.engine_args import EngineArgs
    from forerun.errors import (
        CheckpointError,
        DeadlineExceededError,
        DeviceError,
        EngineBusyError,
        EngineClosedError,
        ForerunError,
        InternalError,
        InvalidArgumentError,
        QueueFullError,
    )
    from forerun.llm import LLM
    from forerun.llm_engine import LLMEngine
    from forerun.logits_processors import (
        AdapterLogitsProcessor,
        BatchUpdate,
        LogitsProcessor,
        MoveDirectionality,
        RequestLogitsProcessor,
        process_dict_updates,
    )
    from forerun.logprobs import FlatLogprobs, Logprob
    from forerun.metrics import (
        Counter,
        Gauge,
        Histogram,
        Metric,
        RequestSpecDecodeMetrics,
        Vector,
    )
    from forerun.outputs import (
        CompletionDelta,
        CompletionOutput,
        RequestOutput,
        TextPrompt,
        TokensPrompt,
    )
    from forerun.sampling_params import RequestOutputKind, SamplingParams
    from forerun.speculative_config import SpeculativeConfig
    from forerun.text.structured_outputs import StructuredOutputsParams
    from forerun.tools.selftest import SelftestReport, selftest

__all__ = [
    "LLM",
    "AdapterLogitsProcessor",
    "AsyncLLM",
    "BatchUpdate",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CheckpointError",
    "CompletionDelta",
    "CompletionOutput",
    "Counter",
    "DeadlineExceededError",
    "DeviceError",
    "EngineArgs",
    "EngineBusyError",
    "EngineClosedError",
    "FlatLogprobs",
    "ForerunError",
    "Gauge",
    "Histogram",
    "InternalError",
    "InvalidArgumentError",
    "LLMEngine",
    "LogitsProcessor",
    "Logprob",
    "Metric",
    "MoveDirectionality",
    "QueueFullError",
    "RequestLogitsProcessor",
    "RequestOutput",
    "RequestOutputKind",
    "RequestSpecDecodeMetrics",
    "SamplingParams",
    "SelftestReport",
    "SpeculativeConfig",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "Vector",
    "process_dict_updates",
    "selftest",
]

# The names of each module. It is imported when one of them is used first: a start that needs
# neither the server's interface nor the tools does not wait for them.
_NAMES = {
    "async_llm": ("AsyncLLM",),
    "beam_search": ("BeamSearchOutput", "BeamSearchParams", "BeamSearchSequence"),
    "engine_args": ("EngineArgs",),
    "errors": (
        "CheckpointError",
        "DeadlineExceededError",
        "DeviceError",
        "EngineBusyError",
        "EngineClosedError",
        "ForerunError",
        "InternalError",
        "InvalidArgumentError",
        "QueueFullError",
    ),
    "llm": ("LLM",),
    "llm_engine": ("LLMEngine",),
    "logits_processors": (
        "AdapterLogitsProcessor",
        "BatchUpdate",
        "LogitsProcessor",
        "MoveDirectionality",
        "RequestLogitsProcessor",
        "process_dict_updates",
    ),
    "logprobs": ("FlatLogprobs", "Logprob"),
    "metrics": ("Counter", "Gauge", "Histogram", "Metric", "RequestSpecDecodeMetrics", "Vector"),
    "outputs": (
        "CompletionDelta",
        "CompletionOutput",
        "RequestOutput",
        "TextPrompt",
        "TokensPrompt",
    ),
    "sampling_params": ("RequestOutputKind", "SamplingParams"),
    "speculative_config": ("SpeculativeConfig",),
    "text.structured_outputs": ("StructuredOutputsParams",),
    "tools.selftest": ("SelftestReport", "selftest"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, or `__version__`, which takes reading the installed package's metadata."""
    if name == "__version__":
        from forerun.version import package_version

        return package_version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"forerun.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, whether they were used or not."""
    return sorted({*globals(), *__all__})
