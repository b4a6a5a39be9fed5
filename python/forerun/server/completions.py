"""/v1/completions: texts that the model continues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from forerun.engine.requests import PreparedPrompt
from forerun.errors import InvalidArgumentError
from forerun.outputs import CompletionDelta, RequestOutput, TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.server.params import (
    output_limit,
    sampling_params,
    structure_of,
    under_names,
)
from forerun.server.protocol import CompletionRequest
from forerun.server.serving import Serving
from forerun.server.token_logprobs import CompletionLogprobs, TokenNames

_MAX_COMPLETIONS = 1024  # of one body: all of its prompts, n times each
_NUM_TOKENS = 16  # OpenAI's default


class CompletionChoice:
    """One text, with what goes with it.

    Args:
        echo: the prompt's text where the answer repeats it.
    """

    has_prompt = True
    num_reasoning_tokens = 0

    def __init__(self, body: CompletionRequest, names: TokenNames, echo: str | None) -> None:
        self._body = body
        self._names = names
        self._echo = echo
        self._logprobs = CompletionLogprobs(names, offset=len(echo or ""))
        self._deltas: list[CompletionDelta] = []
        self._columns: dict[str, list[Any]] = {}

    def take(self, deltas: Sequence[CompletionDelta]) -> dict[str, Any]:
        """Adds some tokens; returns what a chunk for them says of the choice."""
        echo = "" if self._deltas or self._echo is None else self._echo
        self._deltas += deltas
        columns: dict[str, list[Any]] = {}
        for delta in deltas:
            if delta.logprobs is not None:
                _extend(columns, self._logprobs.take(delta.token_ids, delta.logprobs))
        _extend(self._columns, columns)
        return self._choice(echo, deltas, columns)

    def whole(self, output: RequestOutput) -> dict[str, Any]:
        """The finished choice."""
        columns = self._columns
        if self._echo is not None and output.prompt_logprobs is not None and columns:
            prompt = CompletionLogprobs(self._names).take(
                output.prompt_token_ids, output.prompt_logprobs
            )
            columns = _extend(prompt, columns)
        return self._choice(self._echo or "", self._deltas, columns)

    def _choice(
        self, echo: str, deltas: Sequence[CompletionDelta], columns: dict[str, list[Any]]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "text": echo + "".join(delta.text for delta in deltas),
            "logprobs": columns or None,
            "finish_reason": deltas[-1].finish_reason,
        }
        if self._body.return_token_ids:
            found["token_ids"] = [token for delta in deltas for token in delta.token_ids]
        return found


def _extend(columns: dict[str, list[Any]], more: dict[str, list[Any]]) -> dict[str, list[Any]]:
    for name, values in more.items():
        columns.setdefault(name, []).extend(values)
    return columns


class Completions:
    """Answers prompts."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def answer(self, body: CompletionRequest, request: Request) -> Response:
        """Continues the prompts."""
        self._serving.check_model(body.model)
        prompts, params, prepared = await self._serving.in_thread(
            request, body, self._prepare, request, body
        )
        names = self._serving.token_names(body, skips_special=params.skip_special_tokens)
        choices = [
            CompletionChoice(body, names, self._echo(prompt, names) if body.echo else None)
            for prompt in prompts
            for _ in range(params.n)
        ]
        return await self._serving.respond(request, body, prepared, choices)

    def _prepare(
        self, request: Request, body: CompletionRequest
    ) -> tuple[list[str | list[int]], SamplingParams, list[PreparedPrompt]]:
        """The prompts, how to sample, and the prompts encoded, with their grammars compiled."""
        params = self._params(body)
        prompts = _prompts(body)
        with under_names({"text": "prompt"}):
            token_ids = [
                self._encode(prompt, f"prompt[{index}]" if len(prompts) > 1 else "prompt")
                for index, prompt in enumerate(prompts)
            ]
        given = [TokensPrompt(prompt_token_ids=ids) for ids in token_ids]
        return prompts, params, self._serving.prepare(request, body, given, params)

    def _encode(self, prompt: str | list[int], where: str) -> list[int]:
        if isinstance(prompt, str):
            return self._serving.tokenizer.encode(prompt)
        self._serving.check_tokens(where, prompt)
        return prompt

    def _echo(self, prompt: str | list[int], names: TokenNames) -> str:
        return prompt if isinstance(prompt, str) else names.text(prompt)

    def _params(self, body: CompletionRequest) -> SamplingParams:
        prompt_logprobs = body.prompt_logprobs
        if body.echo and body.logprobs is not None:
            if body.stream:
                expected = "no echo in a stream with logprobs"
                raise InvalidArgumentError("echo", True, expected)
            prompt_logprobs = max(prompt_logprobs or 0, body.logprobs)
        limit = self._serving.settings.max_tokens_limit
        fields: dict[str, Any] = {
            "max_tokens": output_limit(body.max_tokens, limit, "max_tokens"),
            "structured_outputs": structure_of(body),
            "logprobs": body.logprobs,
            "prompt_logprobs": prompt_logprobs,
        }
        if body.max_tokens is None:
            fields["max_tokens"] = _NUM_TOKENS if limit is None else min(_NUM_TOKENS, limit)
        return sampling_params(body, self._serving.recommended, **fields)


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts one by one."""
    given = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    if not 0 < len(given) <= _MAX_COMPLETIONS:
        expected = f"1 to {_MAX_COMPLETIONS} prompts"
        raise InvalidArgumentError("prompt", f"{len(given)} prompts", expected)
    num_completions = len(given) * (body.n or 1)
    if num_completions > _MAX_COMPLETIONS:
        expected = f"at most {_MAX_COMPLETIONS // len(given)} for each of {len(given)} prompts"
        raise InvalidArgumentError("n", body.n, expected)
    return [*given]
