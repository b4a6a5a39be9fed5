"""Reading the outputs of requests: step by step, or when all have finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from forerun.engine.requests import Completion, Request, deadline_error
from forerun.engine.scoreboard import Scoreboard
from forerun.outputs import CompletionDelta
from forerun.text.detokenizer import Detokenizer, TokenBytes
from forerun.vllm_fields.arguments import checked_methods


class _Seen(NamedTuple):
    """How much of a completion its stream has handed over. Replaced as a whole."""

    num_tokens: int
    detokenizer: Detokenizer  # after these tokens
    finished: bool


@checked_methods
class Stream:
    """An iterator over what each step adds to some requests.

    Closing it, leaving its `with` block, or dropping it cancels the requests that have not
    finished. An exception that interrupts `next` does not close it: nothing is lost, and the next
    call goes on.
    """

    def __init__(self, board: Scoreboard, requests: Sequence[Request]) -> None:
        self._board = board
        self._requests = list(requests)
        self._open = [
            (request, completion) for request in requests for completion in request.completions
        ]
        self._seen = {
            completion.id: _Seen(
                0,
                Detokenizer(
                    request.token_bytes if request.params.detokenize else TokenBytes([], []),
                    request.params.stop_strings(),
                    skip_special_tokens=request.params.skip_special_tokens,
                ),
                finished=False,
            )
            for request, completion in self._open
        }
        # Deltas, each with what will have been seen when it is handed over.
        self._ready: deque[tuple[int, _Seen, CompletionDelta]] = deque()
        self._is_closed = False

    def __iter__(self) -> Stream:
        """The stream itself."""
        return self

    def __next__(self) -> CompletionDelta:
        """The next delta; steps the engine until there is one.

        Raises:
            DeadlineExceededError: the timeout cut off a request; after the last delta.
        """
        while not self._is_closed:
            self._board.run_until(self._collect)
            try:
                completion_id, seen, delta = self._ready[0]
            except IndexError:
                if not self._open:
                    break
                continue  # another thread reads this stream too
            # No calls from here on: an interrupt comes before all of this or after it.
            self._seen[completion_id] = seen
            del self._ready[0]
            return delta
        # Raised again by every call: an interrupt between the two must not hide it.
        if not self._is_closed and (error := deadline_error(self._requests)):
            raise error
        self._is_closed = True
        raise StopIteration

    def take(self) -> list[CompletionDelta]:
        """What steps have added and `next` has not returned; runs no step."""
        self._collect()
        deltas = []
        while self._ready:
            completion_id, seen, delta = self._ready[0]
            self._seen[completion_id] = seen
            del self._ready[0]
            deltas.append(delta)
        return deltas

    def _collect(self) -> bool:
        """Collects new deltas; returns whether there are any, or no more will come."""
        if self._ready or self._is_closed:
            return True
        still_open = [pair for pair in self._open if not self._is_over(pair[1])]
        # A request's whole output comes with the last delta of its completions.
        last = {request.index: completion for request, completion in still_open}
        ready: deque[tuple[int, _Seen, CompletionDelta]] = deque()
        for request, completion in still_open:
            seen = self._seen[completion.id]
            if len(completion.token_ids) > seen.num_tokens or _has_ended(completion):
                now, delta = self._delta(request, completion, seen)
                has_output = completion is last[request.index] and not request.is_overdue
                delta.output = request.output if has_output else None
                ready.append((completion.id, now, delta))
        self._open = still_open
        self._ready = ready
        return bool(ready) or not still_open

    def _is_over(self, completion: Completion) -> bool:
        """Whether its last delta was handed over; what was cut off has no delta for its end."""
        seen = self._seen[completion.id]
        return seen.finished or (
            completion.is_overdue and seen.num_tokens == len(completion.token_ids)
        )

    def _delta(
        self, request: Request, completion: Completion, seen: _Seen
    ) -> tuple[_Seen, CompletionDelta]:
        new = completion.token_ids[seen.num_tokens :]
        detokenizer = seen.detokenizer.copy()
        delta = CompletionDelta(
            request.index,
            "",
            new,
            completion_index=completion.index,
            logprobs=completion.logprobs[seen.num_tokens :] if request.has_logprobs else None,
        )
        if completion.output is None or completion.is_overdue:
            delta.text = detokenizer.push(new)
        else:
            delta.text = detokenizer.finish(new, completion.num_text_bytes)
            delta.finish_reason = completion.output.finish_reason
        now = _Seen(seen.num_tokens + len(new), detokenizer, _has_ended(completion))
        return now, delta

    def close(self) -> None:
        """Cancels the requests that have not finished."""
        self._is_closed = True
        self._board.cancel(self._requests)

    def __enter__(self) -> Stream:
        """The stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the stream."""
        self.close()


def _has_ended(completion: Completion) -> bool:
    """By itself, or by being cancelled."""
    return completion.output is not None and not completion.is_overdue


def run_all(
    board: Scoreboard,
    requests: Sequence[Request],
    max_model_len: int,
    on_finish: Callable[[Request], Any],
) -> None:
    """Submits requests and steps until all have finished; an interrupt cancels the rest."""
    finished: set[int] = set()
    for request in requests:
        request.finished = finished
    board.submit(requests, max_model_len)
    _wait(board, requests, finished, on_finish)


def wait_all(
    board: Scoreboard, requests: Sequence[Request], on_finish: Callable[[Request], Any]
) -> None:
    """Steps until all of some submitted requests have finished; an interrupt cancels the rest."""
    finished: set[int] = set()
    for index, request in enumerate(requests):
        request.index, request.finished = index, finished
    finished.update(index for index, request in enumerate(requests) if request.output is not None)
    _wait(board, requests, finished, on_finish)


def _wait(
    board: Scoreboard,
    requests: Sequence[Request],
    finished: set[int],
    on_finish: Callable[[Request], Any],
) -> None:
    waiting = {request.index: request for request in requests}
    try:
        while waiting:
            board.run_until(lambda: bool(finished))
            for index in sorted(finished):
                finished.remove(index)
                on_finish(waiting.pop(index))
    except BaseException:
        board.cancel(requests)
        raise
