"""What serves chats and completions: the model, its names, and how requests reach the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from forerun import _core
from forerun.engine.prompts import deadline_after
from forerun.engine.requests import PreparedPrompt
from forerun.errors import DeadlineExceededError, InvalidArgumentError
from forerun.outputs import TokensPrompt
from forerun.sampling_params import SamplingParams
from forerun.server.access_log import log_output
from forerun.server.answers import Answer, Choice, Reports
from forerun.server.errors import ApiError, json_response
from forerun.server.model import Model, Stream
from forerun.server.params import (
    check_copied,
    check_logprobs,
    has_grammar,
    has_several_prompts,
    structure_names,
    under_names,
)
from forerun.server.protocol import ChatRequest, GenerationRequest
from forerun.server.settings import ServerSettings
from forerun.server.sse import stream_events, while_connected
from forerun.server.tenants import tenant_of
from forerun.server.token_logprobs import TokenNames

_T = TypeVar("_T")
_NUM_ENCODERS = 4
_NUM_COMPILERS = 2


class Serving:
    """A model as requests see it."""

    def __init__(self, llm: Model, settings: ServerSettings) -> None:
        self.llm = llm
        self.settings = settings
        self.tokenizer = llm.get_tokenizer()
        # Grammars may take long: what has none does not wait for those that are compiled.
        self._encoders = ThreadPoolExecutor(_NUM_ENCODERS, "forerun-encode")
        self._compilers = ThreadPoolExecutor(_NUM_COMPILERS, "forerun-compile")
        self._opening = asyncio.Lock()
        self.names = settings.served_model_names or (str(llm.labels["model_name"]),)
        # What requests that do not say otherwise sample with.
        recommended = llm.get_default_sampling_params()
        self.recommended = {
            name: getattr(recommended, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        }

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ApiError if another model is asked for."""
        if name is None or name in self.names:
            return name or self.names[0]
        message = f"model: got {name}; this server has {', '.join(self.names)}"
        raise ApiError(404, message, param="model", code="model_not_found")

    def check_tokens(self, where: str, tokens: Sequence[int]) -> None:
        """Raises InvalidArgumentError unless all are ids of the model's tokens."""
        size = self.llm.limits.vocab_size
        for index, token in enumerate(tokens):
            if not 0 <= token < size:
                expected = f"an id from 0 to {size - 1}"
                raise InvalidArgumentError(f"{where}[{index}]", token, expected)

    def token_names(self, body: GenerationRequest, *, skips_special: bool) -> TokenNames:
        """How an answer names tokens."""
        as_ids = bool(body.return_tokens_as_token_ids)
        return TokenNames(self.tokenizer.token_bytes, as_ids, skips_special)

    async def respond(
        self,
        request: Request,
        body: GenerationRequest,
        prompts: Sequence[PreparedPrompt],
        choices: Sequence[Choice],
    ) -> Response:
        """Generates for the prompts and answers, streamed or whole."""
        reports = self._reports(body)
        answer = Answer(
            self._head(request, body),
            choices,
            [each.prompt.token_ids for each in prompts],
            lambda output: log_output(request, output),
        )
        with under_names(self._names_of(body)):
            streams = await self._open(body, prompts, request.state.deadline)
            if body.stream:
                return await stream_events(request, answer.chunks(streams, reports))
            whole = answer.whole(streams, reports)
            return json_response(await while_connected(request, whole))

    def _head(self, request: Request, body: GenerationRequest) -> dict[str, Any]:
        """What every part of an answer begins with."""
        is_chat = isinstance(body, ChatRequest)
        kind = "text_completion"
        if is_chat:
            kind = "chat.completion.chunk" if body.stream else "chat.completion"
        name = body.request_id or request.state.request_id
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{name}",
            "object": kind,
            "created": int(time.time()),
            "model": self.check_model(body.model),
        }

    def _names_of(self, body: GenerationRequest) -> dict[str, str]:
        """The body's names of what the engine may refuse."""
        names = structure_names(body)
        if isinstance(body, ChatRequest):
            names["prompt"] = "messages"
        salts = dict.fromkeys(("prompts: cache_salt", "prompts[0]: cache_salt"), "cache_salt")
        count = "prompt" if has_several_prompts(body) else "n"
        return {**names, **salts, "num_completions": count}

    async def in_thread(
        self,
        request: Request,
        body: GenerationRequest,
        call: Callable[..., _T],
        *arguments: object,
    ) -> _T:
        """Runs what may take long, such as encoding a prompt: other requests go on meanwhile.

        The first thing that is done for a request: its `timeout` runs from here on.

        Raises:
            ClientGoneError, DeadlineExceededError: what has not begun by then never does.
        """
        request.state.deadline = deadline_after(body.timeout)
        pool = self._compilers if has_grammar(body) else self._encoders
        work = asyncio.get_running_loop().run_in_executor(pool, call, *arguments)
        with under_names(self._names_of(body)):
            try:
                return await asyncio.wait_for(while_connected(request, work), body.timeout)
            except asyncio.TimeoutError:
                assert body.timeout is not None
                raise DeadlineExceededError(body.timeout) from None

    def prepare(
        self,
        request: Request,
        body: GenerationRequest,
        prompts: Sequence[TokensPrompt],
        params: SamplingParams,
    ) -> list[PreparedPrompt]:
        """Checks prompts, and compiles what the parameters need; for `in_thread`."""
        tenant = tenant_of(request.state.tenant, body.cache_salt)
        for prompt in prompts:
            self._check_length(body, prompt["prompt_token_ids"])
            if tenant:
                prompt["cache_salt"] = tenant
        prompt_lens = [len(prompt["prompt_token_ids"]) for prompt in prompts]
        check_logprobs(params, self.settings.max_logprobs, prompt_lens, self.llm.limits)
        check_copied(params, len(prompts))
        return self.llm.prepare(prompts, params)

    async def _open(
        self,
        body: GenerationRequest,
        prompts: Sequence[PreparedPrompt],
        deadline: _core.Deadline | None,
    ) -> list[Stream]:
        options: dict[str, Any] = {"timeout": deadline, "priority": body.priority or 0}
        streams: list[Stream] = []
        async with self._opening:  # no other body takes the room that there is now
            self.llm.check_room(sum(each.params.n for each in prompts))
            try:
                for prompt in prompts:
                    streams.append(self.llm.stream(prompt, **options))
                    await asyncio.sleep(0)  # other requests' tokens are sent in between
            except BaseException:
                for stream in streams:
                    await stream.aclose()
                raise
        return streams

    def _check_length(self, body: GenerationRequest, token_ids: list[int]) -> None:
        most = self.llm.limits.max_model_len
        if len(token_ids) >= most:
            name = "messages" if isinstance(body, ChatRequest) else "prompt"
            # LiteLLM and others know the error by these words of OpenAI's.
            known = f"This model's maximum context length is {most} tokens, with the output"
            message = f"{name}: got {len(token_ids)} tokens. {known}"
            raise ApiError(400, message, param=name, code="context_length_exceeded")

    def _reports(self, body: GenerationRequest) -> Reports:
        options = body.stream_options
        if options is not None and not body.stream:
            raise InvalidArgumentError("stream_options", "options", "none without stream=true")
        return Reports(
            usage=self.settings.force_include_usage or bool(options and options.include_usage),
            usage_so_far=bool(options and options.continuous_usage_stats),
            prompt_ids=bool(body.return_token_ids),
            prompt_logprobs=body.prompt_logprobs is not None,
            drafts=bool(options and options.include_drafts),
            metrics=bool(body.include_metrics),
            interval=self.settings.stream_interval,
        )
