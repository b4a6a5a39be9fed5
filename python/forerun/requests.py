"""The requests of an LLM between submission and output."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun import _core
from forerun.detokenizer import Detokenizer, decode
from forerun.errors import InvalidArgumentError
from forerun.metrics import request_metrics
from forerun.outputs import CompletionDelta, CompletionOutput, RequestOutput
from forerun.sampling_params import SamplingParams


@dataclass
class Request:
    """One submitted request and what has come back for it so far."""

    index: int  # in the caller's list
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    token_bytes: Sequence[bytes]
    id: int = -1
    token_ids: list[int] = field(default_factory=list)
    num_text_bytes: int = -1
    output: RequestOutput | None = None

    def take(self, update: _core.RequestUpdate) -> None:
        """Adds what a step did."""
        self.token_ids += update.new_tokens
        if update.finish_reason != _core.FinishReason.NONE:
            self.num_text_bytes = update.num_text_bytes
            self.output = self._finish(update)

    def _finish(self, update: _core.RequestUpdate) -> RequestOutput:
        completion = CompletionOutput(
            index=0,
            text=decode(self.token_bytes, self.token_ids, self.num_text_bytes),
            token_ids=self.token_ids,
            finish_reason=update.finish_reason.name.lower(),
            stop_reason=self._stop_reason(update),
        )
        return RequestOutput(
            request_id=str(self.id),
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[completion],
            finished=True,
            num_cached_tokens=update.num_cached_tokens,
            metrics=request_metrics(update.metrics) if update.metrics else None,
            error=update.error or None,
        )

    def _stop_reason(self, update: _core.RequestUpdate) -> int | str | None:
        if update.stop_string_index >= 0:
            return self.params.stop_strings()[update.stop_string_index]
        # As in vLLM, the model's own end of sequence is no reason worth naming.
        asked = update.stop_token in (self.params.stop_token_ids or ())
        return update.stop_token if asked else None


class Scoreboard:
    """Runs an engine's steps and hands each update to its request.

    Several callers may have requests in the engine at once, such as an open stream and a call of
    generate: whoever steps, every request gets its own updates.
    """

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine
        self._requests: dict[int, Request] = {}

    def submit(self, requests: Sequence[Request], max_model_len: int) -> None:
        """Submits all or, where one can never be served, none."""
        done: list[Request] = []
        try:
            for request in requests:
                params = request.params._to_core(max_model_len)
                request.id = self._engine.submit(request.prompt_token_ids, params)
                self._requests[request.id] = request
                done.append(request)
        except BaseException as error:
            self.cancel(done)
            if isinstance(error, InvalidArgumentError) and len(requests) > 1:
                raise type(error)(
                    f"prompts[{len(done)}]: {error.field}", error.value, error.expected
                ) from error
            raise

    def step(self) -> list[Request]:
        """Runs one step; returns the requests that finished in it."""
        finished = []
        for update in self._engine.step():
            request = self._requests.get(update.id)
            if request is None:
                continue  # cancelled by a caller that no longer listens
            request.take(update)
            if request.output is not None:
                del self._requests[update.id]
                finished.append(request)
        return finished

    def cancel(self, requests: Sequence[Request]) -> None:
        """Ends requests whose caller no longer listens."""
        for request in requests:
            if request.output is None:
                self._engine.cancel(request.id)
                self._requests.pop(request.id, None)

    def settle(self) -> None:
        """Lets the engine take notice of what was cancelled."""
        while not self._requests and self._engine.has_unfinished():
            self._engine.step()


class Stream:
    """An iterator over what each step adds to some requests.

    Closing it, or leaving its `with` block, cancels the requests that have not finished.
    """

    def __init__(self, board: Scoreboard, requests: Sequence[Request]) -> None:
        self._board = board
        self._open = list(requests)
        self._detokenizers = {
            request.id: Detokenizer(request.token_bytes, request.params.stop_strings())
            for request in requests
        }
        self._num_seen = {request.id: 0 for request in requests}
        self._ready: deque[CompletionDelta] = deque()

    def __iter__(self) -> Stream:
        """The stream itself."""
        return self

    def __next__(self) -> CompletionDelta:
        """The next delta; steps the engine until there is one."""
        self._collect()
        while not self._ready and self._open:
            try:
                self._board.step()
            except BaseException:
                self.close()
                raise
            self._collect()
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def _collect(self) -> None:
        for request in list(self._open):
            new = request.token_ids[self._num_seen[request.id] :]
            if not new and request.output is None:
                continue
            self._num_seen[request.id] += len(new)
            self._ready.append(self._delta(request, new))
            if request.output is not None:
                self._open.remove(request)

    def _delta(self, request: Request, new: list[int]) -> CompletionDelta:
        detokenizer = self._detokenizers[request.id]
        if request.output is None:
            return CompletionDelta(request.index, detokenizer.push(new), new)
        text = detokenizer.finish(new, request.num_text_bytes)
        return CompletionDelta(request.index, text, new, request.output)

    def close(self) -> None:
        """Cancels the requests that have not finished."""
        self._board.cancel(self._open)
        self._open = []
        self._ready.clear()

    def __enter__(self) -> Stream:
        """The stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the stream."""
        self.close()

    def __del__(self) -> None:
        """Closes a stream that nobody reads any more."""
        self.close()


def run_all(
    board: Scoreboard, requests: Sequence[Request], on_finish: Callable[[Request], Any]
) -> None:
    """Steps until every request has finished; an interrupt cancels the rest."""
    waiting = {request.id for request in requests}
    try:
        while waiting:
            for request in board.step():
                if request.id in waiting:
                    waiting.remove(request.id)
                    on_finish(request)
    except BaseException:
        board.cancel(requests)
        raise
