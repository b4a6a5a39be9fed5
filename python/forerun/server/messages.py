"""The message of one choice of a chat, as it grows token by token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forerun.text.tool_parsers import (
    ContentDelta,
    Event,
    Parser,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)


class Message:
    """An assistant's message, made of what a parser finds in its text.

    Attributes:
        num_reasoning_tokens: up to the last one that the reasoning needed.
    """

    def __init__(self, parser: Parser, *, shows_reasoning: bool) -> None:
        self._parser = parser
        self._shows_reasoning = shows_reasoning
        self._num_tokens = 0
        self.num_reasoning_tokens = 0
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def push(self, parts: Iterable[tuple[str, int]], *, is_last: bool) -> dict[str, Any]:
        """Reads what tokens add; returns the `delta` of a chunk.

        Args:
            parts: texts, each with its number of tokens.
        """
        events = []
        for text, num_tokens in parts:
            self._num_tokens += num_tokens
            events += self._counted(self._parser.push(text))
        if is_last:
            events += self._counted(self._parser.finish())
        return self._delta(events)

    def _counted(self, events: list[Event]) -> list[Event]:
        if any(isinstance(event, ReasoningDelta) for event in events):
            self.num_reasoning_tokens = self._num_tokens
        return events

    def _delta(self, events: list[Event]) -> dict[str, Any]:
        content, reasoning = "", ""
        calls: dict[int, dict[str, Any]] = {}
        for event in events:
            if isinstance(event, ContentDelta):
                content += event.text
            elif isinstance(event, ReasoningDelta):
                reasoning += event.text
            elif isinstance(event, ToolCallStart):
                calls[event.index] = _call(event)
                self._calls.append(_call(event))
            else:
                self._add_arguments(calls, event)
        delta: dict[str, Any] = {}
        if reasoning and self._shows_reasoning:
            # The second name is that of newer clients of vLLM.
            delta |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if content:
            delta["content"] = content
        if calls:
            delta["tool_calls"] = [{"index": index, **call} for index, call in calls.items()]
        self._content.append(content)
        self._reasoning.append(reasoning)
        return delta

    def _add_arguments(self, calls: dict[int, dict[str, Any]], event: ToolCallArguments) -> None:
        call = calls.setdefault(event.index, {"function": {"arguments": ""}})
        call["function"]["arguments"] += event.text
        self._calls[event.index]["function"]["arguments"] += event.text

    @property
    def has_calls(self) -> bool:
        """Whether it calls a tool."""
        return bool(self._calls)

    def whole(self) -> dict[str, Any]:
        """The message so far."""
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self._calls and not content else content,
            "refusal": None,
        }
        if reasoning and self._shows_reasoning:
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if self._calls:
            message["tool_calls"] = self._calls
        return message


def _call(event: ToolCallStart) -> dict[str, Any]:
    function = {"name": event.name, "arguments": ""}
    return {"id": event.id, "type": "function", "function": function}
