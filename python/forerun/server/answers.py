"""What chats and completions have in common: from an engine's deltas to an answer's choices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from forerun.outputs import CompletionDelta, RequestOutput
from forerun.server.errors import ApiError
from forerun.server.model import Stream
from forerun.server.token_logprobs import prompt_logprobs
from forerun.server.usage import final_usage, metrics_field, usage

_MAX_QUEUED = 8  # reads of several prompts that wait for the client


class Choice(Protocol):
    """One choice of an answer, as it grows.

    Attributes:
        has_prompt: what is said of its prompt is in the choice, and not beside all choices.
    """

    has_prompt: bool

    @property
    def num_reasoning_tokens(self) -> int:
        """How many of its tokens are reasoning."""

    def take(self, deltas: Sequence[CompletionDelta]) -> dict[str, Any]:
        """Adds some tokens; returns what a chunk for them says of the choice."""

    def whole(self, output: RequestOutput) -> dict[str, Any]:
        """The finished choice of a request with this output."""


@dataclass(frozen=True)
class Reports:
    """What an answer contains besides its choices.

    Attributes:
        usage: a stream ends with a chunk that has it; earlier ones have null, as OpenAI's do.
        usage_so_far: every chunk of a stream has that of its choice.
        prompt_ids: the answer has the token ids of its prompts; a stream has them in the first
            chunk of each choice.
        prompt_logprobs: the answer has those of its prompts.
        drafts: every chunk says whether its token was drafted.
        metrics: the answer has those of its requests.
        interval: tokens of one chunk of a choice.
    """

    usage: bool = False
    usage_so_far: bool = False
    prompt_ids: bool = False
    prompt_logprobs: bool = False
    drafts: bool = False
    metrics: bool = False
    interval: int = 1


class Answer:
    """The answer to one request of a client, from the streams of its prompts.

    Every choice gets one chunk for each of its tokens, however many of them a step of the engine
    adds. With an interval it gets one for the first token and then one for so many tokens.

    Args:
        head: what every chunk begins with.
        choices: those of the first prompt, then those of the next one.
        prompts: the token ids of each.
        on_output: called with each finished prompt.
    """

    def __init__(
        self,
        head: dict[str, Any],
        choices: Sequence[Choice],
        prompts: Sequence[list[int]],
        on_output: Callable[[RequestOutput], None],
    ) -> None:
        self._head = head
        self._choices = choices
        self._prompts = prompts
        self._on_output = on_output
        self._num_each = len(choices) // len(prompts)
        self._num_tokens = [0] * len(choices)  # of the chunks so far
        self._begun: set[int] = set()  # choices with a chunk
        self._outputs: dict[int, RequestOutput] = {}

    async def chunks(
        self, streams: Sequence[Stream], reports: Reports
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The chunks of a stream, those together that are ready together."""
        interval = 1 if reports.drafts else reports.interval
        held: list[list[CompletionDelta]] = [[] for _ in self._choices]
        async for deltas in self._deltas(streams):
            ready = []
            for index, delta in deltas:
                held[index].append(delta)
                num_due = interval if index in self._begun else 1
                if len(held[index]) >= num_due or delta.finish_reason is not None:
                    ready.append(self._chunk(index, held[index], reports))
                    held[index] = []
            if ready:
                yield ready
        if reports.usage or reports.metrics:
            yield [{**self._head, "choices": [], **self._end(reports)}]

    def _chunk(
        self, index: int, deltas: Sequence[CompletionDelta], reports: Reports
    ) -> dict[str, Any]:
        of_prompt = {}
        if index not in self._begun:
            self._begun.add(index)
            of_prompt = self._of_prompt(index // self._num_each, reports)
        self._num_tokens[index] += sum(len(delta.token_ids) for delta in deltas)
        chosen = self._choices[index].take(deltas)
        chunk = self._with_choices([{"index": index, **chosen}], [of_prompt])
        if reports.usage_so_far:
            chunk["usage"] = self._usage_so_far(index)
        elif reports.usage:
            chunk["usage"] = None
        if reports.drafts:
            chunk["forerun"] = {"drafted": deltas[-1].is_drafted}
        return chunk

    def _usage_so_far(self, index: int) -> dict[str, Any]:
        """That of one choice: a sum would tell which choices are ahead, which drafts decide."""
        prompt_len = len(self._prompts[index // self._num_each])
        num_reasoning = self._choices[index].num_reasoning_tokens
        return usage(prompt_len, self._num_tokens[index], num_reasoning)

    async def whole(self, streams: Sequence[Stream], reports: Reports) -> dict[str, Any]:
        """The answer in one piece."""
        for stream in streams:
            stream.read_late()
        async for deltas in self._deltas(streams):
            for index, delta in deltas:
                self._choices[index].take([delta])
        if any(output.prompt_logprobs is not None for output in self._outputs.values()):
            # Entries for every token of a long prompt take long: other requests go on meanwhile.
            return await asyncio.to_thread(self._whole, reports)
        return self._whole(reports)

    def _whole(self, reports: Reports) -> dict[str, Any]:
        choices = [
            {"index": index, **choice.whole(self._outputs[index // self._num_each])}
            for index, choice in enumerate(self._choices)
        ]
        of_prompts = [
            self._of_prompt(number, reports, self._outputs[number])
            for number in range(len(self._prompts))
        ]
        each = [of_prompts[index // self._num_each] for index in range(len(choices))]
        return {**self._with_choices(choices, each), **self._end(reports)}

    def _with_choices(
        self, choices: Sequence[dict[str, Any]], of_prompts: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """An answer or a chunk, with what is said of each choice's prompt where it belongs."""
        if self._choices[0].has_prompt:
            whole = [choice | more for choice, more in zip(choices, of_prompts, strict=True)]
            return {**self._head, "choices": whole}
        return {**self._head, "choices": choices, **of_prompts[0]}

    def _of_prompt(
        self, number: int, reports: Reports, output: RequestOutput | None = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if reports.prompt_ids:
            found["prompt_token_ids"] = self._prompts[number]
        if reports.prompt_logprobs and output is not None:
            found["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        return found

    def _end(self, reports: Reports) -> dict[str, Any]:
        outputs = [self._outputs[number] for number in sorted(self._outputs)]
        num_reasoning = sum(choice.num_reasoning_tokens for choice in self._choices)
        end: dict[str, Any] = {"usage": final_usage(outputs, num_reasoning)}
        if reports.metrics:
            end["metrics"] = metrics_field(outputs)
        return end

    async def _deltas(
        self, streams: Sequence[Stream]
    ) -> AsyncIterator[list[tuple[int, CompletionDelta]]]:
        """What the streams add, by the index of the choice."""
        async for number, deltas in merged(streams):
            added = []
            for delta in deltas:
                if delta.finish_reason != "error":
                    added.append((number * self._num_each + delta.completion_index, delta))
                if delta.output is not None:
                    self._outputs[number] = delta.output
                    self._on_output(delta.output)
            if added:
                yield added
            output = self._outputs.get(number)
            if output is not None and output.error is not None:
                message = f"the request failed: {output.error}"
                raise ApiError(500, message, code="request_failed", kind="server_error")


async def merged(
    streams: Sequence[Stream],
) -> AsyncIterator[tuple[int, list[CompletionDelta]]]:
    """What several streams give, as it comes, with their numbers; closes them at the end."""
    if len(streams) == 1:
        async with streams[0] as stream:
            while deltas := await stream.read():
                yield 0, deltas
        return
    queue: asyncio.Queue[tuple[int, list[CompletionDelta] | Exception]]
    queue = asyncio.Queue(_MAX_QUEUED)

    async def read(number: int) -> None:
        try:
            async with streams[number] as stream:
                while deltas := await stream.read():
                    await queue.put((number, deltas))
        except Exception as error:
            await queue.put((number, error))
        else:
            await queue.put((number, []))

    tasks = [asyncio.ensure_future(read(number)) for number in range(len(streams))]
    try:
        num_open = len(tasks)
        while num_open:
            number, read_last = await queue.get()
            if isinstance(read_last, Exception):
                raise read_last
            if read_last:
                yield number, read_last
            else:
                num_open -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
