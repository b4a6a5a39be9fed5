"""The requests of an LLM between submission and output."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from forerun import _core
from forerun.errors import InternalError, InvalidArgumentError
from forerun.logits_processors import EngineProcessors, chain_processors
from forerun.logprobs import FlatLogprobs
from forerun.metrics import (
    RequestMetrics,
    request_metrics,
    request_spec_decode_metrics,
    total_request_metrics,
)
from forerun.outputs import (
    CompletionDelta,
    CompletionOutput,
    RequestOutput,
)
from forerun.prompt_histograms import PromptHistograms
from forerun.sampling_params import SamplingParams
from forerun.text.detokenizer import Detokenizer, TokenBytes, decode
from forerun.text.structured_outputs import GrammarState
from forerun.text.turns import make_turns
from forerun.vllm_fields.arguments import checked_methods

_LOGGER = logging.getLogger("forerun")


@dataclass
class Completion:
    """One of a request's completions: a request of the engine's own."""

    index: int
    id: int = -1
    token_ids: list[int] = field(default_factory=list)
    logprobs: FlatLogprobs = field(default_factory=lambda: FlatLogprobs([]))
    num_text_bytes: int = -1
    output: CompletionOutput | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0
    error: str = ""


@dataclass
class Request:
    """One prompt and what has come back for it so far."""

    index: int  # in the caller's list
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    token_bytes: TokenBytes
    bad_words: list[list[int]] = field(default_factory=list)
    start_grammar: Callable[[], GrammarState] | None = None
    submit_options: _core.SubmitOptions = field(default_factory=_core.SubmitOptions)
    request_id: str | None = None  # the caller's; None takes the engine's number
    reports_drafts: bool = False
    engine_processors: EngineProcessors | None = None
    output: RequestOutput | None = None
    finished: set[int] = field(default_factory=set)  # indices; one for all requests of a call

    def __post_init__(self) -> None:
        """Makes the completions."""
        table = self.token_bytes.whole if self.params.detokenize else []
        self.completions = [
            Completion(index, logprobs=FlatLogprobs(table)) for index in range(self.params.n)
        ]
        self._prompt_logprobs = FlatLogprobs(table, starts_with_none=True)

    @property
    def num_generated_tokens(self) -> int:
        """Of all completions so far."""
        return sum(len(completion.token_ids) for completion in self.completions)

    @property
    def text_bytes(self) -> list[bytes]:
        """What each token adds to the text."""
        if not self.params.detokenize:
            return []
        return self.token_bytes.plain if self.params.skip_special_tokens else self.token_bytes.whole

    def hooks(self) -> dict[str, Any]:
        """What the engine calls for one completion."""
        processors = list(self.params.logits_processors or ())
        if self.engine_processors is not None:
            processors += self.engine_processors.functions(self.params, self.prompt_token_ids)
        return {
            "constraint": self.start_grammar() if self.start_grammar else None,
            "logits_hook": chain_processors(processors) if processors else None,
        }

    def take(self, completion: Completion, update: _core.RequestUpdate) -> None:
        """Adds what a step did for one completion; adding the last update again changes nothing."""
        begin = update.num_earlier_tokens
        completion.token_ids[begin:] = update.new_tokens
        completion.num_cached_tokens = update.num_cached_tokens
        if self.has_logprobs:
            completion.logprobs.put_rows(begin, update.logprobs)
        # The first completion reports them.
        if self.params.prompt_logprobs is not None and completion.index == 0:
            self._prompt_logprobs.put_rows(
                update.num_earlier_prompt_logprobs, update.prompt_logprobs
            )
        if update.finish_reason != _core.FinishReason.NONE:
            self._finish(completion, update)
            if all(completion.output is not None for completion in self.completions):
                self.output = self._output()
                self.finished.add(self.index)

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities of the output were asked for."""
        return self.params.logprobs is not None or self.params.logprob_token_ids is not None

    @property
    def prompt_logprobs(self) -> FlatLogprobs | None:
        """Those of the prompt so far, where they were asked for."""
        return None if self.params.prompt_logprobs is None else self._prompt_logprobs

    def cumulative_logprob(self, index: int) -> float | None:
        """Of a completion's tokens so far, where log-probabilities were asked for."""
        return sum(self.completions[index].logprobs.of_tokens()) if self.has_logprobs else None

    def _finish(self, completion: Completion, update: _core.RequestUpdate) -> None:
        completion.num_text_bytes = update.num_text_bytes
        completion.error = update.error
        completion.metrics = request_metrics(update.metrics) if update.metrics else None
        completion.output = CompletionOutput(
            index=completion.index,
            text=decode(self.text_bytes, completion.token_ids, completion.num_text_bytes),
            token_ids=completion.token_ids,
            cumulative_logprob=self.cumulative_logprob(completion.index),
            logprobs=completion.logprobs if self.has_logprobs else None,
            finish_reason=update.finish_reason.name.lower(),
            stop_reason=self._stop_reason(update),
            spec_decode_metrics=(
                request_spec_decode_metrics(update.metrics)
                if self.reports_drafts and update.metrics
                else None
            ),
        )

    def _output(self) -> RequestOutput:
        done = self.completions
        metrics = [completion.metrics for completion in done if completion.metrics is not None]
        return RequestOutput(
            request_id=str(done[0].id) if self.request_id is None else self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[completion.output for completion in done if completion.output is not None],
            finished=True,
            prompt_logprobs=self.prompt_logprobs,
            num_cached_tokens=done[0].num_cached_tokens,
            metrics=total_request_metrics(metrics) if metrics else None,
            error=next((completion.error for completion in done if completion.error), None),
        )

    def _stop_reason(self, update: _core.RequestUpdate) -> int | str | None:
        if update.stop_string_index >= 0:
            return self.params.stop_strings()[update.stop_string_index]
        # As in vLLM, the model's own end of sequence is not reported.
        asked = update.stop_token in (self.params.stop_token_ids or ())
        return update.stop_token if asked else None


class _Listener(weakref.ref[Request]):
    """The receiver of a completion's updates; dead once the request is dropped."""

    id: int
    index: int  # of the completion


class Scoreboard:
    """Runs an engine's steps and hands each update to its request.

    Several callers, in one thread or in many, may have requests in the engine at once, such as an
    open stream and a call of generate: whichever of them steps, every request gets its updates.

    An exception of a signal handler may end any method between two bytecodes. So an update is not
    forgotten before it was taken, taking it twice changes nothing, and a request whose id was lost
    is cancelled when it is seen.
    """

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine
        bounds = engine.metrics().histograms.request_generation_tokens.bounds
        self.prompt_histograms = PromptHistograms.empty(bounds)
        self._turns = make_turns()
        self._listeners: dict[int, _Listener] = {}
        self._gone: deque[_Listener] = deque()  # cancelled or dead, not yet in the engine
        self._is_delivered = True  # the last step's updates
        self._is_failure_logged = False

    @property
    def turn(self) -> _core.Turns:
        """What a thread enters to have the engine for itself; see EngineBusyError."""
        return self._turns

    def submit(self, requests: Sequence[Request], max_model_len: int) -> None:
        """Submits all or, where one can never be served, none."""
        # The first completion of every prompt first: the others find the prompt in the cache.
        every = [
            (request, completion) for request in requests for completion in request.completions
        ]
        every.sort(key=lambda pair: pair[1].index)
        try:
            with self._turns:
                for request, completion in every:
                    self._submit(request, completion, max_model_len, is_alone=len(requests) == 1)
        except BaseException:
            self.cancel(requests)
            raise

    def _submit(
        self, request: Request, completion: Completion, max_model_len: int, *, is_alone: bool
    ) -> None:
        try:
            params = request.params._to_core(max_model_len, completion.index, request.bad_words)
            completion.id = self._engine.submit(
                request.prompt_token_ids,
                params,
                **request.hooks(),
                options=request.submit_options,
            )
        except InvalidArgumentError as error:
            if is_alone:
                raise
            raise type(error)(
                f"prompts[{request.index}]: {error.field}", error.value, error.expected
            ) from error
        listener = _Listener(request, self._gone.append)
        listener.id, listener.index = completion.id, completion.index
        self._listeners[completion.id] = listener

    def run_until(self, look: Callable[[], bool]) -> None:
        """Steps until `look()`; other threads have their turns between the steps."""
        done = False
        while not done:
            with self._turns:
                self._catch_up()
                done = look()
                if not done:
                    self.step()
                    done = look()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Ends requests whose caller no longer listens. May be called at any time."""
        ids = [completion.id for request in requests for completion in request.completions]
        self._gone.extend([self._listeners[id] for id in ids if id in self._listeners])

    def run_step(self) -> None:
        """Runs one step, if there is work, in this thread's turn."""
        with self._turns:
            self._catch_up()
            if self._engine.has_unfinished():
                self.step()

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes; False while a request is unfinished."""
        with self._turns:
            self._settle()
            return self._engine.reset_prefix_cache()

    def _settle(self) -> None:
        self._catch_up()
        while not self._listeners and self._engine.has_unfinished():
            self.step()  # the engine removes cancelled requests in a step

    def reset_caches(self) -> None:
        """Forgets cached prefixes and past outputs. No request may be unfinished."""
        with self._turns:
            self._settle()
            if self._engine.has_unfinished():
                raise InvalidArgumentError(
                    "reset_caches", "an open request", "no unfinished stream or call of generate"
                )
            self._engine.reset_caches()

    def step(self) -> None:
        """Runs one step and delivers its updates. REQUIRES: it is this thread's turn."""
        if not self._engine.has_unfinished():
            raise InternalError("a caller waits for an update, and no request is unfinished")
        self._is_delivered = False
        self._engine.step()
        self._deliver()

    def _catch_up(self) -> None:
        """Cancels and delivers what an interrupted turn, or a caller out of turn, left."""
        while self._gone:
            listener = self._gone[0]
            if self._listeners.get(listener.id) is listener:
                self._engine.cancel(listener.id)
                del self._listeners[listener.id]
            self._gone.popleft()
        self._deliver()

    def _deliver(self) -> None:
        if self._is_delivered:
            return
        for update in self._engine.updates():
            listener = self._listeners.get(update.id)
            request = listener() if listener is not None else None
            if listener is None or request is None:
                self._engine.cancel(update.id)  # no effect unless its submission was interrupted
                continue
            completion = request.completions[listener.index]
            request.take(completion, update)
            if request.output is not None:
                num_tokens = [len(each.token_ids) for each in request.completions]
                self.prompt_histograms = self.prompt_histograms.observe(
                    request.completions[0].id, num_tokens
                )
            if completion.output is not None:
                self._log_drafting_failure()
                self._listeners.pop(update.id, None)
        self._is_delivered = True

    def _log_drafting_failure(self) -> None:
        """Logs the first one, once per engine. Called for finished requests: metrics are a copy."""
        if self._is_failure_logged:
            return
        metrics = self._engine.metrics()
        if metrics.num_drafting_failures > 0:
            self._is_failure_logged = True
            message = "The drafter failed; its requests go on without drafts: %s"
            _LOGGER.warning(message, metrics.first_drafting_failure)


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
        """The next delta; steps the engine until there is one."""
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
        still_open = [pair for pair in self._open if not self._seen[pair[1].id].finished]
        # A request's whole output comes with the last delta of its completions.
        last = {request.index: completion for request, completion in still_open}
        ready: deque[tuple[int, _Seen, CompletionDelta]] = deque()
        for request, completion in still_open:
            seen = self._seen[completion.id]
            if len(completion.token_ids) > seen.num_tokens or completion.output is not None:
                now, delta = self._delta(request, completion, seen)
                delta.output = request.output if completion is last[request.index] else None
                ready.append((completion.id, now, delta))
        self._open = still_open
        self._ready = ready
        return bool(ready) or not still_open

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
        if completion.output is None:
            delta.text = detokenizer.push(new)
        else:
            delta.text = detokenizer.finish(new, completion.num_text_bytes)
            delta.finish_reason = completion.output.finish_reason
        now = _Seen(seen.num_tokens + len(new), detokenizer, completion.output is not None)
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
