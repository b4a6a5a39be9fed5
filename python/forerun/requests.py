"""The requests of an LLM between submission and output."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun import _core
from forerun.detokenizer import Detokenizer, TokenBytes, decode
from forerun.errors import InvalidArgumentError
from forerun.logits_processors import chain_processors
from forerun.metrics import (
    RequestMetrics,
    request_metrics,
    request_spec_decode_metrics,
    total_request_metrics,
)
from forerun.outputs import (
    CompletionDelta,
    CompletionOutput,
    Logprob,
    PromptLogprobs,
    RequestOutput,
    SampleLogprobs,
)
from forerun.sampling_params import SamplingParams
from forerun.structured_outputs import GrammarState


@dataclass
class Completion:
    """One of a request's completions: a request of the engine's own."""

    index: int
    id: int = -1
    token_ids: list[int] = field(default_factory=list)
    logprobs: SampleLogprobs = field(default_factory=list)
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
    reports_drafts: bool = False
    output: RequestOutput | None = None

    def __post_init__(self) -> None:
        """Makes the completions."""
        self.completions = [Completion(index) for index in range(self.params.n)]
        self._prompt_logprobs: PromptLogprobs = [None]

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
        processors = self.params.logits_processors
        return {
            "constraint": self.start_grammar() if self.start_grammar else None,
            "logits_hook": chain_processors(list(processors)) if processors else None,
        }

    def take(self, completion: Completion, update: _core.RequestUpdate) -> None:
        """Adds what a step did for one completion."""
        completion.token_ids += update.new_tokens
        if self.params.logprobs is not None:
            completion.logprobs += map(self._logprobs, update.logprobs)
        if self.params.prompt_logprobs is not None:
            self._prompt_logprobs += map(self._logprobs, update.prompt_logprobs)
        if update.finish_reason != _core.FinishReason.NONE:
            self._finish(completion, update)
            if all(completion.output is not None for completion in self.completions):
                self.output = self._output()

    def _logprobs(self, entries: list[tuple[int, float, int]]) -> dict[int, Logprob]:
        table = self.token_bytes.whole if self.params.detokenize else []
        return {
            token: Logprob(logprob, rank, decode(table, [token]) if table else None)
            for token, logprob, rank in entries
        }

    def _finish(self, completion: Completion, update: _core.RequestUpdate) -> None:
        completion.num_text_bytes = update.num_text_bytes
        completion.num_cached_tokens = update.num_cached_tokens
        completion.error = update.error
        completion.metrics = request_metrics(update.metrics) if update.metrics else None
        scored = self.params.logprobs is not None
        chosen = zip(completion.token_ids, completion.logprobs, strict=True) if scored else ()
        completion.output = CompletionOutput(
            index=completion.index,
            text=decode(self.text_bytes, completion.token_ids, completion.num_text_bytes),
            token_ids=completion.token_ids,
            cumulative_logprob=(
                sum(entries[token].logprob for token, entries in chosen) if scored else None
            ),
            logprobs=completion.logprobs if scored else None,
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
            request_id=str(done[0].id),
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[completion.output for completion in done if completion.output is not None],
            finished=True,
            prompt_logprobs=(
                None if self.params.prompt_logprobs is None else self._prompt_logprobs
            ),
            num_cached_tokens=done[0].num_cached_tokens,
            metrics=total_request_metrics(metrics) if metrics else None,
            error=next((completion.error for completion in done if completion.error), None),
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
        self._completions: dict[int, tuple[Request, Completion]] = {}

    def submit(self, requests: Sequence[Request], max_model_len: int) -> None:
        """Submits all or, where one can never be served, none."""
        # The first completion of every prompt first: the others find the prompt in the cache.
        every = [
            (request, completion) for request in requests for completion in request.completions
        ]
        every.sort(key=lambda pair: pair[1].index)
        for request, completion in every:
            try:
                params = request.params._to_core(max_model_len, completion.index, request.bad_words)
                completion.id = self._engine.submit(
                    request.prompt_token_ids, params, **request.hooks()
                )
            except BaseException as error:
                self.cancel(requests)
                if isinstance(error, InvalidArgumentError) and len(requests) > 1:
                    raise type(error)(
                        f"prompts[{request.index}]: {error.field}", error.value, error.expected
                    ) from error
                raise
            self._completions[completion.id] = (request, completion)

    def step(self) -> list[Request]:
        """Runs one step; returns the requests that finished in it."""
        finished = []
        for update in self._engine.step():
            if update.id not in self._completions:
                continue  # cancelled by a caller that no longer listens
            request, completion = self._completions[update.id]
            request.take(completion, update)
            if completion.output is not None:
                del self._completions[update.id]
            if request.output is not None:
                finished.append(request)
        return finished

    def cancel(self, requests: Sequence[Request]) -> None:
        """Ends requests whose caller no longer listens."""
        for request in requests:
            for completion in request.completions:
                if self._completions.pop(completion.id, None) is not None:
                    self._engine.cancel(completion.id)

    def settle(self) -> None:
        """Lets the engine take notice of what was cancelled."""
        while not self._completions and self._engine.has_unfinished():
            self._engine.step()


class Stream:
    """An iterator over what each step adds to some requests.

    Closing it, or leaving its `with` block, cancels the requests that have not finished.
    """

    def __init__(self, board: Scoreboard, requests: Sequence[Request]) -> None:
        self._board = board
        self._requests = list(requests)
        self._open = [
            (request, completion) for request in requests for completion in request.completions
        ]
        self._detokenizers = {
            completion.id: Detokenizer(
                request.token_bytes if request.params.detokenize else TokenBytes([], []),
                request.params.stop_strings(),
                skip_special_tokens=request.params.skip_special_tokens,
            )
            for request, completion in self._open
        }
        self._num_seen = {completion.id: 0 for _, completion in self._open}
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
        still_open = []
        # A request's whole output comes with the last delta of its completions.
        last = {request.index: completion for request, completion in self._open}
        for request, completion in self._open:
            num_seen = self._num_seen[completion.id]
            if len(completion.token_ids) > num_seen or completion.output is not None:
                self._num_seen[completion.id] = len(completion.token_ids)
                delta = self._delta(request, completion, num_seen)
                delta.output = request.output if completion is last[request.index] else None
                self._ready.append(delta)
            if completion.output is None:
                still_open.append((request, completion))
        self._open = still_open

    def _delta(self, request: Request, completion: Completion, num_seen: int) -> CompletionDelta:
        new = completion.token_ids[num_seen:]
        detokenizer = self._detokenizers[completion.id]
        scored = request.params.logprobs is not None
        delta = CompletionDelta(
            request.index,
            "",
            new,
            completion_index=completion.index,
            logprobs=completion.logprobs[num_seen:] if scored else None,
        )
        if completion.output is None:
            delta.text = detokenizer.push(new)
        else:
            delta.text = detokenizer.finish(new, completion.num_text_bytes)
            delta.finish_reason = completion.output.finish_reason
        return delta

    def close(self) -> None:
        """Cancels the requests that have not finished."""
        self._board.cancel(self._requests)
        self._requests = []
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
    waiting = {id(request) for request in requests}
    try:
        while waiting:
            for request in board.step():
                if id(request) in waiting:
                    waiting.remove(id(request))
                    on_finish(request)
    except BaseException:
        board.cancel(requests)
        raise
