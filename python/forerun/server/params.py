"""From a request's body to SamplingParams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from forerun import _core
from forerun.errors import InvalidArgumentError
from forerun.sampling_params import SamplingParams
from forerun.server.protocol import ChatRequest, CompletionRequest, GenerationRequest
from forerun.text.structured_outputs import StructuredOutputsParams
from forerun.text.tool_parsers import constrains_calls

# Fields that SamplingParams has under the same name.
_SAME = (
    *("temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "max_tokens", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    *("allowed_token_ids", "bad_words", "prompt_logprobs", "speculative", "max_draft_tokens"),
)
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
}
KINDS = tuple(_GUIDED.values())
_MAX_LOGPROBS = 4_000_000
_MAX_COPIED = 1 << 20


def sampling_params(
    body: GenerationRequest,
    recommended: Mapping[str, Any],
    *,
    renamed: Mapping[str, str] | None = None,
    **fields: Any,
) -> SamplingParams:
    """A body's parameters over those that the model recommends.

    Args:
        recommended: fields of SamplingParams for what the body does not give.
        renamed: fields of SamplingParams that the body has under another name, for errors.
        fields: fields of SamplingParams that take precedence, unless they are None.
    """
    if body.stream and body.prompt_logprobs is not None:
        expected = "no prompt_logprobs in a stream"
        raise InvalidArgumentError("prompt_logprobs", body.prompt_logprobs, expected)
    given = {name: getattr(body, name) for name in _SAME}
    given |= {"extra_args": body.vllm_xargs, **fields}
    given = {name: value for name, value in given.items() if value is not None}
    with under_names({"extra_args": "vllm_xargs", **(renamed or {})}):
        return SamplingParams(**{**recommended, **given})


@contextmanager
def under_names(names: Mapping[str, str]) -> Iterator[None]:
    """Errors in the block name fields as the body does."""
    try:
        yield
    except InvalidArgumentError as error:
        problems = [
            InvalidArgumentError(names.get(each.field, each.field), each.value, each.expected)
            for each in error.problems
        ]
        raise InvalidArgumentError.of_all(problems) from None


def structure_of(body: GenerationRequest) -> StructuredOutputsParams | None:
    """What the text must be, by the one parameter that says so."""
    asked = _restrictions(body)
    if len(asked) > 1:
        raise InvalidArgumentError(asked[1], "a second restriction", f"none beside {asked[0]}")
    pattern = body.guided_whitespace_pattern
    if pattern is not None and not (asked and asked[0].startswith("guided_json")):
        raise InvalidArgumentError("guided_whitespace_pattern", pattern, "guided_json beside it")
    if not asked:
        return None
    if body.structured_outputs is not None:
        with under_names({name: f"{asked[0]}.{name}" for name in body.structured_outputs}):
            return StructuredOutputsParams(**body.structured_outputs)
    with under_names({**structure_names(body), **dict.fromkeys(KINDS, asked[0])}):
        if asked[0] == "response_format":
            return _of_format(body)
        return StructuredOutputsParams(
            **{_GUIDED[asked[0]]: getattr(body, asked[0])},
            whitespace_pattern=pattern,
        )


def _restrictions(body: GenerationRequest) -> list[str]:
    """The parameters that restrict the text."""
    names = [*_GUIDED, "structured_outputs", "response_format"]
    given = [name for name in names if getattr(body, name) not in (None, False)]
    is_text = body.response_format is not None and body.response_format.type == "text"
    return [name for name in given if name != "response_format" or not is_text]


def has_grammar(body: GenerationRequest) -> bool:
    """Whether a grammar may have to be compiled."""
    if _restrictions(body):
        return True
    if not isinstance(body, ChatRequest) or not body.tools:
        return False
    return constrains_calls(
        body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        has_strict=any(tool.function.strict for tool in body.tools),
    )


def has_several_prompts(body: GenerationRequest) -> bool:
    """Whether one body asks for the completions of more than one prompt."""
    prompts = body.prompt if isinstance(body, CompletionRequest) else ""
    return isinstance(prompts, list) and len(prompts) > 1 and not isinstance(prompts[0], int)


def structure_names(body: GenerationRequest) -> dict[str, str]:
    """The body's names of the fields of `structured_outputs`, for errors."""
    name = next(iter(_restrictions(body)), "structured_outputs")
    if name == "structured_outputs":
        return {}
    names = {f"structured_outputs.{kind}": name for kind in KINDS} | {"structured_outputs": name}
    pattern = dict.fromkeys(
        ("whitespace_pattern", "structured_outputs.whitespace_pattern"), "guided_whitespace_pattern"
    )
    return names | pattern


def _of_format(body: GenerationRequest) -> StructuredOutputsParams:
    given = body.response_format
    assert given is not None
    if given.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if given.json_schema is None:
        field = "response_format.json_schema"
        raise InvalidArgumentError(field, None, "a schema with type='json_schema'")
    schema = given.json_schema.schema_
    return StructuredOutputsParams(json={} if schema is None else schema)


def check_logprobs(
    params: SamplingParams, most: int, prompt_lens: Sequence[int], limits: _core.ModelLimits
) -> None:
    """Refuses more log-probabilities than the server gives: of a token, and in one answer.

    Args:
        most: for a token; -1 is the whole vocabulary.
        prompt_lens: of all prompts of the body, in tokens.
    """
    output_len = min(params.max_tokens or limits.max_model_len, limits.max_model_len)
    num_generated = len(prompt_lens) * params.n * output_len
    num_values = 0
    for name, num_tokens in (("logprobs", num_generated), ("prompt_logprobs", sum(prompt_lens))):
        asked = getattr(params, name)
        if asked is None:
            continue
        if most != -1 and not 0 <= asked <= most:
            expected = f"at most {most}: the limit of this server"
            raise InvalidArgumentError(name, asked, expected)
        num_values += num_tokens * (limits.vocab_size if asked == -1 else asked + 1)
        if num_values > _MAX_LOGPROBS:
            expected = f"at most {_MAX_LOGPROBS} in one answer"
            raise InvalidArgumentError(name, f"{num_values} log-probabilities", expected)


def check_copied(params: SamplingParams, num_prompts: int) -> None:
    """Refuses long lists beside many completions: the engine has a copy for each.

    Bodies have no such long `logit_bias`.
    """
    for name in ("allowed_token_ids", "stop_token_ids"):
        num_tokens = len(getattr(params, name) or ())
        if num_prompts * params.n * num_tokens > _MAX_COPIED:
            expected = f"at most {_MAX_COPIED} for all completions of a body together"
            raise InvalidArgumentError(name, f"{num_tokens} tokens", expected)


def predicted_text(body: ChatRequest) -> str | None:
    """The text that the answer is likely to resemble.

    Raises:
        InvalidArgumentError: the body asks for what OpenAI refuses beside a prediction.
    """
    given = body.prediction
    if given is None:
        return None
    one, zero = "1 beside a prediction", "at most 0 beside a prediction"
    for name, is_refused, expected in (
        ("n", (body.n or 1) > 1, one),
        ("logprobs", bool(body.logprobs), "none beside a prediction"),
        ("tools", bool(body.tools), "none beside a prediction"),
        ("presence_penalty", (body.presence_penalty or 0) > 0, zero),
        ("frequency_penalty", (body.frequency_penalty or 0) > 0, zero),
    ):
        if is_refused:
            value = f"{len(body.tools or ())} tools" if name == "tools" else getattr(body, name)
            raise InvalidArgumentError(name, value, expected)
    if isinstance(given.content, str):
        return given.content
    return "".join(part.text for part in given.content)


def output_limit(asked: int | None, limit: int | None, name: str) -> int | None:
    """The most tokens to generate: what was asked for, within the server's limit."""
    if limit is None:
        return asked
    if asked is not None and asked > limit:
        raise InvalidArgumentError(name, asked, f"at most {limit}: the limit of this server")
    return limit if asked is None else asked
