"""Forerun: speculative decoding that changes the speed of a language model and nothing else."""

from typing import Any

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


def __getattr__(name: str) -> Any:
    """`__version__`, which takes reading the installed package's metadata."""
    if name == "__version__":
        from forerun.version import package_version

        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
