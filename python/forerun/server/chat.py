"""/v1/chat/completions: conversations, with tools and reasoning."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from forerun.engine.requests import PreparedPrompt
from forerun.errors import InvalidArgumentError
from forerun.outputs import CompletionDelta, RequestOutput, TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.server.messages import Message
from forerun.server.params import (
    output_limit,
    predicted_text,
    sampling_params,
    structure_names,
    structure_of,
    under_names,
)
from forerun.server.prompts import chat_prompt
from forerun.server.protocol import AllowedToolChoice, ChatRequest, NamedTool
from forerun.server.serving import Serving
from forerun.server.token_logprobs import TokenNames, chat_logprobs
from forerun.text.chat_template import reads_tools
from forerun.text.structured_outputs import StructuredOutputsParams
from forerun.text.tool_parsers import (
    Parser,
    after_reasoning,
    demands_calls,
    detect_formats,
    make_parser,
    special_markers,
    starts_in_reasoning,
    tool_grammar,
)

_LOGGER = logging.getLogger("forerun.server")
_TAIL = 16  # tokens of a prompt's end that may hold the beginning of the reasoning


class ChatChoice:
    """One message, with what goes with it."""

    has_prompt = False

    def __init__(self, message: Message, names: TokenNames, body: ChatRequest) -> None:
        self._message = message
        self._names = names
        self._num_top = (body.top_logprobs or 0) if body.logprobs else None
        self._has_ids = bool(body.return_token_ids)
        self._has_role = False
        self._logprobs: list[dict[str, Any]] = []
        self._token_ids: list[int] = []
        self._finish_reason: str | None = None

    @property
    def num_reasoning_tokens(self) -> int:
        """How many of its tokens are reasoning."""
        return self._message.num_reasoning_tokens

    def take(self, deltas: Sequence[CompletionDelta]) -> dict[str, Any]:
        """Adds some tokens; returns what a chunk for them says of the choice."""
        message: dict[str, Any] = {} if self._has_role else {"role": "assistant"}
        self._has_role = True
        last = deltas[-1].finish_reason is not None
        parts = [(delta.text, len(delta.token_ids)) for delta in deltas]
        message |= self._message.push(parts, is_last=last)
        if last:
            self._finish_reason = self._reason(str(deltas[-1].finish_reason))
        return {"delta": message, **self._beside(deltas), "finish_reason": self._finish_reason}

    def _beside(self, deltas: Sequence[CompletionDelta]) -> dict[str, Any]:
        found: dict[str, Any] = {"logprobs": None}
        if self._num_top is not None:
            content = [
                entry
                for delta in deltas
                if delta.logprobs is not None
                for entry in chat_logprobs(self._names, delta.logprobs, self._num_top)
            ]
            self._logprobs += content
            found["logprobs"] = {"content": content, "refusal": None}
        if self._has_ids:
            found["token_ids"] = [token for delta in deltas for token in delta.token_ids]
            self._token_ids += found["token_ids"]
        return found

    def _reason(self, reason: str) -> str:
        return "tool_calls" if reason == "stop" and self._message.has_calls else reason

    def whole(self, output: RequestOutput) -> dict[str, Any]:
        """The finished choice."""
        has_logprobs = self._num_top is not None
        found: dict[str, Any] = {
            "message": self._message.whole(),
            "logprobs": {"content": self._logprobs, "refusal": None} if has_logprobs else None,
            "finish_reason": self._finish_reason,
        }
        if self._has_ids:
            found["token_ids"] = self._token_ids
        return found


class Chats:
    """Answers conversations."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        settings, tokenizer = serving.settings, serving.tokenizer
        try:
            template = tokenizer.get_chat_template(settings.chat_template)
        except InvalidArgumentError:
            detected: tuple[str | None, str | None] = (None, None)  # requests say so
        else:
            detected = detect_formats(template)
        self._tools = settings.tool_call_parser or detected[0]
        self._reasoning = settings.reasoning_parser or detected[1]
        special_markers(tokenizer, self._tools, self._reasoning)  # raises for unknown names
        self._warning = threading.Lock()  # kept by the first request with unread tools

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        """Generates the next message."""
        serving = self._serving
        serving.check_model(body.model)
        prompt, new_parser = await serving.in_thread(request, body, self._prepare, body, request)
        params = prompt.params
        names = serving.token_names(body, skips_special=params.skip_special_tokens)
        shows_reasoning = body.include_reasoning is not False
        choices = [
            ChatChoice(Message(new_parser(), shows_reasoning=shows_reasoning), names, body)
            for _ in range(params.n)
        ]
        return await serving.respond(request, body, [prompt], choices)

    def _prepare(
        self, body: ChatRequest, request: Request
    ) -> tuple[PreparedPrompt, Callable[[], Parser]]:
        """The prompt with how to sample, and what makes a parser of the output."""
        tools = self._tools_of(body)
        prompt = chat_prompt(self._serving, body, tools)
        formats = (self._tools if tools else None, self._reasoning)
        tokenizer = self._serving.tokenizer
        inside = starts_in_reasoning(self._reasoning, tokenizer.decode(prompt[-_TAIL:]))
        special = special_markers(tokenizer, *formats)
        structure = structure_of(body)
        names = structure_names(body) if structure else {"structured_outputs.grammar": "tools"}
        with under_names(names):
            structure = self._restriction(body, tools, structure, inside, special)
            params = self._params(body, structure, is_special=bool(special))
            given = self._with_prediction(prompt, body)
            with under_names({"logprobs": "top_logprobs"}):
                [prepared] = self._serving.prepare(request, body, [given], params)
        new_parser = partial(
            make_parser,
            *formats,
            starts_in_reasoning=inside,
            tools=tools,
            is_calls_alone=bool(tools) and demands_calls(_choice(body)),
        )
        return prepared, new_parser

    def _with_prediction(self, prompt: list[int], body: ChatRequest) -> TokensPrompt:
        text = predicted_text(body)
        if text is None:
            return TokensPrompt(prompt_token_ids=prompt)
        with under_names({"text": "prediction.content"}):
            prediction = self._serving.tokenizer.encode(text, add_special_tokens=False)
        return TokensPrompt(prompt_token_ids=prompt, prediction=prediction)

    def _tools_of(self, body: ChatRequest) -> list[dict[str, Any]]:
        """The tools that the model may call, as chat templates get them."""
        names = [tool.function.name for tool in body.tools or ()]
        choice = body.tool_choice
        if not names and choice not in (None, "none"):
            raise InvalidArgumentError("tool_choice", choice, "tools beside it")
        for field, name in _named(choice):
            if name not in names:
                raise InvalidArgumentError(field, name, f"one of {', '.join(names)}")
        if not names or choice == "none":
            return []
        if self._tools is None:
            expected = "none: the chat template has no known format of calls (--tool-call-parser)"
            raise InvalidArgumentError("tools", f"{len(names)} tools", expected)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        self._warn_of_unread(tools)
        return tools

    def _warn_of_unread(self, tools: list[dict[str, Any]]) -> None:
        """Says once that the model is not told of the tools."""
        given = self._serving.settings.chat_template
        template = self._serving.tokenizer.get_chat_template(given, tools)
        if not reads_tools(template) and self._warning.acquire(blocking=False):
            _LOGGER.warning(
                "the chat template does not read tools: the model is not told of those in requests"
            )

    def _restriction(
        self,
        body: ChatRequest,
        tools: list[dict[str, Any]],
        answer: StructuredOutputsParams | None,
        inside: bool,
        special: Mapping[str, int],
    ) -> StructuredOutputsParams | None:
        """What the output must be: calls that are demanded or strict, and the answer."""
        if tools and self._tools is not None:
            grammar = tool_grammar(
                self._tools,
                tools,
                _choice(body),
                parallel_tool_calls=body.parallel_tool_calls is not False,
                answer=answer,
                reasoning_format=self._reasoning,
                starts_in_reasoning=inside,
                special_tokens=special,
            )
            if grammar is not None:
                return grammar
        if answer is None or self._reasoning is None:
            return answer
        return after_reasoning(
            answer, self._reasoning, starts_in_reasoning=inside, special_tokens=special
        )

    def _params(
        self, body: ChatRequest, structure: StructuredOutputsParams | None, *, is_special: bool
    ) -> SamplingParams:
        if body.top_logprobs is not None and not body.logprobs:
            raise InvalidArgumentError("top_logprobs", body.top_logprobs, "logprobs=true beside it")
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        asked = getattr(body, name)
        fields: dict[str, Any] = {
            "max_tokens": output_limit(asked, self._serving.settings.max_tokens_limit, name),
            "structured_outputs": structure,
            "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
            "skip_special_tokens": False if is_special else None,  # the parsers need them
        }
        recommended = {**self._serving.recommended, "max_tokens": None}
        renamed = {"logprobs": "top_logprobs", "max_tokens": name}
        return sampling_params(body, recommended, renamed=renamed, **fields)


def _choice(body: ChatRequest) -> Any:
    """The choice of tools, in OpenAI's form."""
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _named(choice: Any) -> list[tuple[str, str]]:
    """The functions that a choice names, each after the path of its name."""
    if isinstance(choice, NamedTool):
        return [("tool_choice.function.name", choice.function.name)]
    if isinstance(choice, AllowedToolChoice):
        path = "tool_choice.allowed_tools.tools"
        tools = enumerate(choice.allowed_tools.tools)
        return [(f"{path}[{index}].function.name", tool.function.name) for index, tool in tools]
    return []
