"""What the server answers, for /openapi.json. Answers are written without these classes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

_REASON = Literal["stop", "length", "tool_calls", "abort"] | None


class Part(BaseModel):
    """A part of an answer; there are no others than these."""

    model_config = ConfigDict(extra="forbid")


class PromptDetails(Part):
    """Of the prompt's tokens, those from the prefix cache."""

    cached_tokens: int


class CompletionDetails(Part):
    """Of the generated tokens, those of reasoning, and those of a prediction."""

    reasoning_tokens: int
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class Usage(Part):
    """Tokens of all choices; in the middle of a stream without the prompt's details."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails


class Metrics(Part):
    """With include_metrics: how tokens were drafted, and times in seconds."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    acceptance_rate: float
    mean_acceptance_length: float
    num_target_passes: int
    tokens_per_target_pass: float
    num_preemptions: int
    queue_seconds: float
    first_token_seconds: float
    decode_seconds: float
    total_seconds: float


class Drafted(Part):
    """With stream_options.include_drafts: whether the token was an accepted draft token."""

    drafted: bool


class FunctionCall(Part):
    """A function's name and its arguments as JSON; chunks have more and more of these."""

    name: str | None = None
    arguments: str


class ToolCall(Part):
    """A call of a tool."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class TokenLogprob(Part):
    """The log-probability of one token."""

    token: str
    logprob: float
    bytes: list[int]


class TopLogprobs(TokenLogprob):
    """That of a sampled token, and of the most probable ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Part):
    """Log-probabilities of a choice."""

    content: list[TopLogprobs]
    refusal: None


class PromptLogprob(Part):
    """The log-probability of one token of a prompt."""

    logprob: float
    rank: int
    decoded_token: str | None


class Delta(Part):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Message(Delta):
    """The assistant's message."""

    refusal: None


class Choice(Part):
    """What all choices may have."""

    index: int
    finish_reason: _REASON
    token_ids: list[int] | None = None


class ChatChoice(Choice):
    """One message of an answer."""

    message: Message
    logprobs: ChatLogprobs | None


class ChunkChoice(Choice):
    """What a chunk adds to one message."""

    delta: Delta
    logprobs: ChatLogprobs | None


class TextLogprobs(Part):
    """Log-probabilities of a text, token by token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TextChoice(Choice):
    """One text of an answer."""

    text: str
    logprobs: TextLogprobs | None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class Answer(Part):
    """What all answers and chunks may have."""

    id: str
    created: int
    model: str
    usage: Usage | None = None
    metrics: Metrics | None = None


class ChatCompletion(Answer):
    """The answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class ChatCompletionChunk(Answer):
    """An event of a stream of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    prompt_token_ids: list[int] | None = None
    forerun: Drafted | None = None


class Completion(Answer):
    """The answer of /v1/completions, and an event of its streams."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    forerun: Drafted | None = None


class Tokens(Part):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(Part):
    """The answer of /detokenize."""

    prompt: str


class ModelCard(Part):
    """One name of the model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "forerun"
    root: str
    max_model_len: int


class ModelList(Part):
    """All names of the model."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Version(Part):
    """Forerun's version."""

    version: str


class Fault(Part):
    """OpenAI's form of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Part):
    """What a request that is refused, or that fails, is answered with."""

    error: Fault


def responses(answer: type[Part], chunk: type[Part] | None = None) -> dict[int | str, Any]:
    """The responses of a route: its answer, and its chunks where it may be a stream."""
    success: dict[str, Any] = {"model": answer, "description": "Answered"}
    if chunk is not None:
        events = {
            "type": "string",
            "description": "Server-sent events: each has one of these, and the last is [DONE].",
            "contentMediaType": "application/json",
            "contentSchema": _inlined(chunk.model_json_schema()),
        }
        success["content"] = {"text/event-stream": {"schema": events}}
    return {200: success}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which would be those of the whole document."""
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(item) for item in part]
        if not isinstance(part, dict):
            return part
        name = part.get("$ref", "").removeprefix("#/$defs/")
        if name:
            return inlined(definitions[name])
        return {key: inlined(value) for key, value in part.items()}

    found: dict[str, Any] = inlined(schema)
    return found
