"""Prompts and outputs, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from forerun.logprobs import FlatLogprobs

if TYPE_CHECKING:
    from forerun.metrics import RequestMetrics, RequestSpecDecodeMetrics


class _PromptOptions(TypedDict, total=False):
    cache_salt: str | None
    prediction: str | list[int] | None
    multi_modal_data: None


class _PromptText(_PromptOptions, total=False):
    prompt: str | None


class TextPrompt(_PromptOptions):
    """A prompt as text.

    Only prompts with an equal `cache_salt` share cached prefixes. `prediction` is a text, or token
    ids, that the output is likely to resemble: docs/predicted_outputs.md.
    """

    prompt: str


class TokensPrompt(_PromptText):
    """A prompt as token ids; a text beside them is only reported with the output."""

    prompt_token_ids: list[int]


@dataclass
class CompletionOutput:
    """One generated text of a request.

    Attributes:
        index: which of the request's `n` completions.
        token_ids: every generated token, the one that stopped it included.
        cumulative_logprob: the sum over the generated tokens, where logprobs were asked for.
        logprobs: for each generated token, where they were asked for: first of the token itself,
            then of the most probable ones or of logprob_token_ids.
        finish_reason: "stop", "length", "abort", "error" or "deadline"; None while it runs.
        stop_reason: the stop string or the id out of stop_token_ids that ended the text.
        spec_decode_metrics: its drafts, where the LLM drafts and per_request_spec_decode_metrics
            is "summary" or "detailed".
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: FlatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    spec_decode_metrics: RequestSpecDecodeMetrics | None = None
    # Always None: no adapters, no experts' routes or masks to return, and one version of weights.
    lora_request: None = None
    routed_experts: None = None
    sampling_mask: None = None
    weight_versions: None = None

    def finished(self) -> bool:
        """Whether the text is complete."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """A request and what was generated for it.

    Attributes:
        outputs: its `n` completions, in order.
        prompt_logprobs: for each token of the prompt, where they were asked for.
        num_cached_tokens: prompt tokens that the prefix cache provided.
        metrics: counters of this request, all completions together.
        error: why, where finish_reason is "error".
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: FlatLogprobs | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None
    error: str | None = None
    # Always None: models have no adapters, no encoder and no cache elsewhere, and what a request
    # adds to the prefix cache is not counted.
    lora_request: None = None
    encoder_prompt: None = None
    encoder_prompt_token_ids: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    num_cache_creation_tokens: None = None
    prompt_token_id_logprobs: None = None


@dataclass
class CompletionDelta:
    """What a step added to one completion of a stream.

    Attributes:
        index: which of the prompts.
        output: everything, once the request has finished with all its completions.
        completion_index: which of the prompt's `n` completions.
        finish_reason: why the completion ended; None while it runs.
        logprobs: of the new tokens, where they were asked for.
        is_drafted: of an AsyncLLM's delta, whether its token was an accepted draft token.
    """

    index: int
    text: str
    token_ids: list[int]
    output: RequestOutput | None = None
    completion_index: int = 0
    finish_reason: str | None = None
    logprobs: FlatLogprobs | None = None
    is_drafted: bool = False

    @property
    def finished(self) -> bool:
        """Whether this is the last delta of its request."""
        return self.output is not None
