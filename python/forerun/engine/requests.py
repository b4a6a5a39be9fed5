"""The requests of an LLM between submission and output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forerun import _core
from forerun.engine.prompts import ParsedPrompt
from forerun.errors import DeadlineExceededError, InvalidArgumentError
from forerun.logprobs import FlatLogprobs
from forerun.outputs import (
    CompletionOutput,
    RequestOutput,
)
from forerun.sampling_params import SamplingParams
from forerun.text.detokenizer import TokenBytes, decode

if TYPE_CHECKING:
    from forerun.logits_processors import EngineProcessors
    from forerun.metrics import RequestMetrics
    from forerun.text.grammar_compiler import GrammarState

_DEADLINE = _core.FinishReason.DEADLINE.name.lower()


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt and its parameters, checked, tokenized and compiled, for any number of requests."""

    prompt: ParsedPrompt
    params: SamplingParams
    bad_words: list[list[int]]
    start_grammar: Callable[[], GrammarState] | None


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

    @property
    def is_overdue(self) -> bool:
        """Whether its deadline cut it off."""
        return self.output is not None and self.output.finish_reason == _DEADLINE


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
    deadline: _core.Deadline | None = None  # that of submit_options
    reports_drafts: bool = False
    engine_processors: EngineProcessors | None = None
    remember: Callable[[list[int]], None] | None = None  # takes outputs that drafts may learn from
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
        hook = None
        if processors:
            from forerun.logits_processors import chain_processors

            hook = chain_processors(processors)
        constraint = self.start_grammar() if self.start_grammar else None
        return {"constraint": constraint, "logits_hook": hook}

    def submit(self, engine: _core.Engine, completion: Completion, max_model_len: int) -> None:
        """Submits one completion."""
        completion.id = engine.submit(
            self.prompt_token_ids,
            self.params._to_core(max_model_len, completion.index, self.bad_words),
            **self.hooks(),
            options=self.submit_options,
        )

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
    def is_overdue(self) -> bool:
        """Whether its deadline cut off a completion."""
        return any(completion.is_overdue for completion in self.completions)

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
        from forerun.metrics import request_metrics, request_spec_decode_metrics

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
        is_whole = update.finish_reason in (_core.FinishReason.STOP, _core.FinishReason.LENGTH)
        if self.remember is not None and self.params.speculative and is_whole:
            self.remember(completion.token_ids)

    def _output(self) -> RequestOutput:
        from forerun.metrics import total_request_metrics

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


def check_room(engine: _core.Engine, count: int, field: str) -> None:
    """Raises QueueFullError unless so many completions may be submitted now.

    Raises InvalidArgumentError for the field if they never may.
    """
    try:
        engine.check_room(count)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(field, f"{count} completions", error.expected) from error


def deadline_error(requests: Sequence[Request]) -> DeadlineExceededError | None:
    """What a call raises whose requests have ended, if a deadline cut one off."""
    for request in requests:
        if request.is_overdue and request.deadline is not None:
            outputs = [each.output for each in requests]
            return DeadlineExceededError(request.deadline.seconds, outputs)
    return None
