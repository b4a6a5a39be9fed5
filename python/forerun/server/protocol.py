"""The requests that the server takes: OpenAI's parameters, vLLM's and its own.

None is the same as no value. Values are not converted: `"5"` is no number. Ranges are checked where
SamplingParams and the engine check them. parameters.py lists what is accepted without a field here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from forerun.server.descriptions import describe
from forerun.server.parameters import CHAT, COMPLETION, without_neutral

_T = TypeVar("_T")
# A body of nothing but mistakes is answered as fast as one with a few: lists end at the first
# mistake, and objects have only so many names.
Items = Annotated[list[_T], Field(fail_fast=True)]
_MAX_NAMES = 200
_MAX_BIASED = 1024  # tokens
TokenIds = Items[int]


class Body(BaseModel):
    """A request's JSON; other parameters than the declared ones are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), json_schema_extra=describe
    )

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and len(given) > _MAX_NAMES:
            message = f"more than {_MAX_NAMES} parameters, which is more than there are"
            raise PydanticCustomError("too_many_parameters", message)
        return given


class StreamOptions(Body):
    """What a stream reports besides the text."""

    include_usage: bool | None = Field(
        None, description="A last chunk without choices has the usage; in others it is null."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="Every chunk has the usage of its choice so far."
    )
    include_drafts: bool | None = Field(
        None,
        description="Every chunk is one token and says whether it was drafted: forerun.drafted.",
    )
    include_obfuscation: bool | None = Field(
        None, description="Without effect: chunks are not padded."
    )


class JsonSchema(Body):
    """A JSON schema that the answer follows; it is enforced, strict or not."""

    name: str = Field(min_length=1)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Body):
    """A function that the model may call."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """Which function."""

    name: str


class NamedTool(Body):
    """The function that the model has to call, or one that it may call."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    """Functions, and whether one of them has to be called."""

    mode: Literal["auto", "required"]
    tools: Items[NamedTool] = Field(min_length=1)


class AllowedToolChoice(Body):
    """The only functions that the model may call; its prompt has all tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class TextPart(Body):
    """A part of a text."""

    type: Literal["text"]
    text: str


class Prediction(Body):
    """A text that the answer is likely to resemble, such as a file that is edited."""

    type: Literal["content"]
    content: str | Items[TextPart]


class GenerationRequest(Body):
    """What chats and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # OpenAI's.
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = None
    stop: str | Items[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # The numbers are checked where SamplingParams checks them, which ends at the first mistake.
    logit_bias: dict[str, Any] | None = Field(None, max_length=_MAX_BIASED)
    response_format: ResponseFormat | None = None
    # vLLM's.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Items[str] | None = None
    prompt_logprobs: int | None = None
    structured_outputs: dict[str, Any] | None = Field(None, max_length=_MAX_NAMES)
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Items[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: str | None = None
    priority: int | None = Field(None, gt=-(2**31), lt=2**31)
    request_id: str | None = Field(None, max_length=128)
    cache_salt: str | None = Field(None, max_length=256)
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    vllm_xargs: dict[str, Any] | None = None
    # Forerun's.
    speculative: bool | None = Field(None, description="False decodes without drafts.")
    max_draft_tokens: int | None = Field(
        None, description="The most tokens drafted for this request in one step."
    )
    timeout: float | None = Field(None, description="Seconds until the request is given up.")
    include_metrics: bool | None = Field(
        None, description="The answer has acceptance, tokens per pass and times in `metrics`."
    )


class ChatRequest(GenerationRequest):
    """The body of /v1/chat/completions."""

    messages: Items[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    prediction: Prediction | None = Field(
        None, description="Drafted for this request alone; the answer does not depend on it."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    tools: Items[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: Items[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=_MAX_NAMES)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        return without_neutral(CHAT, given)


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions."""

    prompt: str | TokenIds | Items[str] | Items[TokenIds]
    logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        return without_neutral(COMPLETION, given)


class TokenizeRequest(Body):
    """The body of /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Items[dict[str, Any]] | None = None
    tools: Items[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=_MAX_NAMES)
    return_token_strs: bool | None = None
    documents: Items[dict[str, Any]] | None = None
    reasoning_effort: str | None = None


class DetokenizeRequest(Body):
    """The body of /detokenize."""

    model: str | None = None
    tokens: TokenIds
