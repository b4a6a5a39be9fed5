"""What the parsers of all formats have in common."""

from __future__ import annotations

import secrets
from typing import Protocol

from forerun.text.tool_parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)
from forerun.text.tool_parsers.reader import Reader, Step


class Parser(Protocol):
    """Reads an output as it comes and says what it consists of.

    How the text is divided into pieces makes no difference to the events, apart from how the text
    in them is divided.
    """

    def push(self, text: str) -> list[Event]:
        """Reads more of the output; returns what is certain now."""

    def finish(self) -> list[Event]:
        """The output has ended; returns the rest."""


class StepParser:
    """A parser whose `_parse` reads the whole output and waits wherever text is missing."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._events: list[Event] = []
        self._num_calls = 0
        self._steps = self._parse()
        next(self._steps, None)

    def _parse(self) -> Step[None]:
        raise NotImplementedError

    def push(self, text: str) -> list[Event]:
        """Reads more of the output; returns what is certain now."""
        self._reader.append(text)
        return self._run()

    def finish(self) -> list[Event]:
        """The output has ended; returns the rest."""
        self._reader.end()
        return self._run()

    def _run(self) -> list[Event]:
        next(self._steps, None)
        events, self._events = self._events, []
        return events

    def _content(self, text: str) -> None:
        if text:
            self._add(ContentDelta(text))

    def _reasoning(self, text: str) -> None:
        if text:
            self._add(ReasoningDelta(text))

    def _arguments(self, text: str) -> None:
        if text:
            self._add(ToolCallArguments(self._num_calls - 1, text))

    def _add(self, event: ContentDelta | ReasoningDelta | ToolCallArguments) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallArguments) and isinstance(event, ToolCallArguments):
            if last.index == event.index:
                self._events[-1] = ToolCallArguments(last.index, last.text + event.text)
                return
        elif isinstance(last, ContentDelta | ReasoningDelta) and type(last) is type(event):
            self._events[-1] = type(last)(last.text + event.text)
            return
        self._events.append(event)


class ToolCallParser(StepParser):
    """A parser of content and tool calls.

    A call is reported once its name is certain. Text that only looks like the beginning of a call
    becomes content, as it is, unless other calls were before it and the output ends within it.
    """

    def _new_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def _start(self, name: str) -> None:
        self._reader.unpin()
        self._events.append(ToolCallStart(self._num_calls, self._new_id(), name))
        self._num_calls += 1

    def _try(self, step: Step[bool]) -> Step[bool]:
        """Reads a call; goes back to where it began if it proves to be none.

        After other calls, one whose beginning ends the output is skipped.
        """
        self._reader.pin()
        is_call = yield from step
        if not is_call and self._num_calls and self._reader.met_end:
            self._reader.position = len(self._reader.text)
            is_call = True
        elif not is_call:
            self._reader.rewind()
        self._reader.unpin()
        return is_call

    def _end(self, marker: str) -> Step[None]:
        """Reads the marker after a call, which may be missing, or in part if the output was cut."""
        yield from self._reader.skip_beginning(marker)
        yield from self._reader.accept(marker)

    def _parse_marked(self, *markers: str) -> Step[None]:
        """Reads content, and from each marker on what `_marked` reads.

        Newlines around calls belong to the markup, as in chat templates.
        """
        reader = self._reader
        while marker := (yield from reader.stream_until(markers, self._content, trimmed="\n")):
            reader.position -= len(marker)
            if (yield from self._try(self._after(marker))):
                yield from reader.skip()
            else:
                self._content(marker)
                reader.position += len(marker)

    def _after(self, marker: str) -> Step[bool]:
        self._reader.position += len(marker)
        return (yield from self._marked(marker.lstrip("\n")))

    def _marked(self, marker: str) -> Step[bool]:
        """Reads what follows a marker; False if it is no call."""
        raise NotImplementedError
