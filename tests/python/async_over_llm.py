"""AsyncLLM's interface over an LLM, for tests of the server alone."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from forerun import LLM
from forerun.engine.requests import Request
from forerun.outputs import CompletionDelta
from forerun.sampling_params import SamplingParams
from forerun.text.detokenizer import Detokenizer


class AsyncStream:
    """The deltas of one request, one token each."""

    def __init__(self, llm: LLM, prompt: Any, params: SamplingParams) -> None:
        self._stream = llm.stream([prompt], params)
        self._request: Request = self._stream._requests[0]
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[CompletionDelta | BaseException | None] = asyncio.Queue()
        self._decoders = [
            Detokenizer(
                self._request.token_bytes,
                params.stop_strings(),
                skip_special_tokens=params.skip_special_tokens,
            )
            for _ in range(params.n)
        ]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            for delta in self._stream:
                for part in self._split(delta):
                    self._put(part)
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _split(self, delta: CompletionDelta) -> list[CompletionDelta]:
        if not delta.token_ids:
            return [delta]
        parts = []
        for number, token in enumerate(delta.token_ids, 1):
            part = CompletionDelta(
                0, "", [token], completion_index=delta.completion_index, logprobs=None
            )
            part.is_drafted = number < len(delta.token_ids)  # type: ignore[attr-defined]
            if delta.logprobs is not None:
                part.logprobs = delta.logprobs[number - 1 : number]
            decoder = self._decoders[delta.completion_index]
            if number == len(delta.token_ids):
                part.output, part.finish_reason = delta.output, delta.finish_reason
            if part.finish_reason is not None:
                completion = self._request.completions[delta.completion_index]
                part.text = decoder.finish([token], completion.num_text_bytes)
            else:
                part.text = decoder.push([token])
            parts.append(part)
        return parts

    def _put(self, item: CompletionDelta | BaseException | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> CompletionDelta:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item

    async def aclose(self) -> None:
        self._stream.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncLLM:
    """An LLM whose streams are asynchronous."""

    def __init__(self, model: Path, **options: Any) -> None:
        self._llm = LLM(model, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    @property
    def labels(self) -> dict[str, str]:
        return self._llm._labels

    def stream(self, prompt: Any, params: SamplingParams, **_: Any) -> AsyncStream:
        return AsyncStream(self._llm, prompt, params)
