"""What comes back, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from forerun.metrics import RequestMetrics


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: list[int]


@dataclass
class CompletionOutput:
    """The generated text of a request.

    Attributes:
        index: always 0: one completion per request.
        token_ids: every generated token, the one that stopped it included.
        finish_reason: "stop", "length", "abort" or "error"; None while it runs.
        stop_reason: the stop string or the id out of stop_token_ids that ended the text.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether the text is complete."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """A request and what was generated for it.

    Attributes:
        num_cached_tokens: prompt tokens that the prefix cache provided.
        metrics: counters of this request.
        error: why, where finish_reason is "error".
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    error: str | None = None


@dataclass
class CompletionDelta:
    """What a step added to one request of a stream.

    Attributes:
        index: which of the prompts.
        output: everything, once the request has finished.
    """

    index: int
    text: str
    token_ids: list[int]
    output: RequestOutput | None = None

    @property
    def finished(self) -> bool:
        """Whether this is the last delta of its request."""
        return self.output is not None
