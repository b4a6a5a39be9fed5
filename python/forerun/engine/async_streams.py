"""Reading the output of a request token by token, in an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from forerun import _core
from forerun.engine.requests import Request, deadline_error
from forerun.engine.scoreboard import Scoreboard
from forerun.outputs import CompletionDelta, RequestOutput
from forerun.text.detokenizer import Detokenizer, TokenBytes

_Reason = _core.FinishReason
_MOST_AT_ONCE = 64  # deltas of one read


class _Piece(NamedTuple):
    """A delta that was not read yet."""

    completion: int  # its index
    num_tokens: int  # 1, or 0 where a request ends without another token
    is_last: bool  # of the completion
    is_drafted: bool


class AsyncStream:
    """An asynchronous iterator over the tokens of one request, made by `AsyncLLM.stream`."""

    def __init__(
        self,
        request: Request,
        board: Scoreboard,
        *,
        cancel: Callable[[list[int]], None],
        let_wait: Callable[[list[int]], None],
    ) -> None:
        self._request = request
        self._board = board
        self._cancel = cancel
        self._let_wait = let_wait
        self._num_read = [0] * len(request.completions)
        self._num_open = len(request.completions)  # completions without a last delta
        self._detokenizers = [
            Detokenizer(
                request.token_bytes if request.params.detokenize else TokenBytes([], []),
                request.params.stop_strings(),
                skip_special_tokens=request.params.skip_special_tokens,
            )
            for _ in request.completions
        ]
        self._pieces: deque[_Piece] = deque()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None  # raised after the pieces
        self._is_over = False  # no more pieces will come

    def __aiter__(self) -> AsyncStream:
        """The stream itself."""
        return self

    async def __anext__(self) -> CompletionDelta:
        """The next token of one of the completions."""
        await self._wait_for_piece()
        if not self._pieces:
            raise StopAsyncIteration
        return self._delta(self._pieces.popleft())

    async def read(self) -> list[CompletionDelta]:
        """The next tokens: those that are there, or the first that comes; none at the end."""
        await self._wait_for_piece()
        num_read = min(len(self._pieces), _MOST_AT_ONCE)
        return [self._delta(self._pieces.popleft()) for _ in range(num_read)]

    async def wait_output(self) -> RequestOutput:
        """The whole output, once it is there; deltas are not read."""
        self.read_late()
        while not self._is_over:
            await self._wait()
        self._raise_error()
        assert self._request.output is not None
        return self._request.output

    def read_late(self) -> None:
        """Lets deltas come late, many at a time, which costs less time of the processor.

        For a reader that does nothing before it has all of them.
        """
        unfinished = [each.id for each in self._request.completions if each.output is None]
        if unfinished:
            self._let_wait(unfinished)

    async def _wait_for_piece(self) -> None:
        """Waits until there is one, or none will come; after the last, raises what ended them."""
        while not self._pieces and not self._is_over:
            await self._wait()
        if not self._pieces:
            self._raise_error()

    async def _wait(self) -> None:
        self._changed.clear()
        try:
            await self._changed.wait()
        except BaseException:
            self.close()
            raise

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _delta(self, piece: _Piece) -> CompletionDelta:
        request, index = self._request, piece.completion
        completion = request.completions[index]
        begin = self._num_read[index]
        end = self._num_read[index] = begin + piece.num_tokens
        new = completion.token_ids[begin:end]
        delta = CompletionDelta(
            request.index,
            "",
            new,
            completion_index=index,
            logprobs=completion.logprobs[begin:end] if request.has_logprobs else None,
            is_drafted=piece.is_drafted,
        )
        if not piece.is_last:
            delta.text = self._detokenizers[index].push(new)
            return delta
        assert completion.output is not None
        delta.text = self._detokenizers[index].finish(new, completion.num_text_bytes)
        delta.finish_reason = completion.output.finish_reason
        self._num_open -= 1
        delta.output = request.output if self._num_open == 0 else None
        return delta

    def receive(self, index: int, update: _core.RequestUpdate) -> None:
        """Takes what a step did for a completion."""
        completion = self._request.completions[index]
        self._board.record(self._request, completion, update)
        reason = update.finish_reason
        num_tokens = len(update.new_tokens)
        # Another end has a delta of its own, as it has where a step emits one token.
        ends_with_token = reason in (_Reason.STOP, _Reason.LENGTH) and num_tokens > 0
        self._pieces.extend(
            _Piece(
                index,
                1,
                is_last=ends_with_token and i == num_tokens - 1,
                is_drafted=i < update.num_accepted,
            )
            for i in range(num_tokens)
        )
        if reason not in (_Reason.NONE, _Reason.DEADLINE) and not ends_with_token:
            self._pieces.append(_Piece(index, 0, is_last=True, is_drafted=False))
        if self._request.output is not None:
            self._error = deadline_error([self._request])
            self._end()
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error, which is raised after what was emitted."""
        if not self._is_over:
            self._error = error
            self._end()

    def close(self) -> None:
        """Cancels the request, unless it has finished. No delta follows."""
        self._pieces.clear()
        self._error = None
        self._end()

    async def aclose(self) -> None:
        """What `close` does."""
        self.close()

    def _end(self) -> None:
        self._is_over = True
        self._cancel([completion.id for completion in self._request.completions])
        self._changed.set()

    async def __aenter__(self) -> AsyncStream:
        """The stream itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the stream."""
        self.close()
