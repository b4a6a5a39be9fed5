"""Forerun: speculative decoding that changes the speed of a language model and nothing else."""

from forerun.engine_args import EngineArgs
from forerun.errors import (
    CheckpointError,
    EngineBusyError,
    ForerunError,
    InternalError,
    InvalidArgumentError,
)
from forerun.llm import LLM
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
    Logprob,
    RequestOutput,
    TextPrompt,
    TokensPrompt,
)
from forerun.sampling_params import RequestOutputKind, SamplingParams
from forerun.selftest import SelftestReport, selftest
from forerun.speculative_config import SpeculativeConfig
from forerun.structured_outputs import StructuredOutputsParams

__all__ = [
    "LLM",
    "CheckpointError",
    "CompletionDelta",
    "CompletionOutput",
    "Counter",
    "EngineArgs",
    "EngineBusyError",
    "ForerunError",
    "Gauge",
    "Histogram",
    "InternalError",
    "InvalidArgumentError",
    "Logprob",
    "Metric",
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
    "selftest",
]
