"""The text in which a model reasons before it answers."""

from __future__ import annotations

from collections.abc import Callable

from forerun.text.tool_parsers.parser import StepParser
from forerun.text.tool_parsers.reader import Step


class ReasoningParser(StepParser):
    """Separates reasoning between two markers from the content around it.

    Newlines at the markers belong to the markup, as in chat templates.

    Args:
        opening: the marker before reasoning.
        closing: the marker after it.
        starts_inside: the prompt ends with the opening marker.
        is_repeated: the opening marker counts everywhere, not only at the beginning: it is a token
            of its own that no other text contains.
        calls: the markers before and after a tool call; None looks for none in the reasoning.

    Attributes:
        tail: the calls with which the output ended within the reasoning, if it did. Models that
            call a tool forget to end their reasoning, or end it after the call. Others try calls
            out while they reason, and go on.
    """

    def __init__(
        self,
        opening: str,
        closing: str,
        *,
        starts_inside: bool,
        is_repeated: bool,
        calls: tuple[str, str] | None = None,
    ) -> None:
        self._opening = opening
        self._closing = closing
        self._starts_inside = starts_inside
        self._is_repeated = is_repeated
        self._calls = calls
        self.tail = ""
        super().__init__()

    def _parse(self) -> Step[None]:
        reader = self._reader
        reader.pin()
        yield from reader.skip()
        # Models whose prompt ends with the marker may repeat it.
        is_inside = (yield from reader.accept(self._opening)) or self._starts_inside
        if not is_inside:
            reader.rewind()
        reader.unpin()
        while True:
            if is_inside:
                yield from reader.skip("\n")
                yield from self._reason()
                yield from reader.skip("\n")
            if not self._is_repeated:
                break
            yield from self._until(self._opening, self._content)
            if not (yield from reader.peek()):
                break
            is_inside = True
        yield from reader.stream_rest(self._content)

    def _reason(self) -> Step[None]:
        """Reads reasoning to its end."""
        if self._calls is None:
            yield from self._until(self._closing, self._reasoning)
            return
        reader = self._reader
        opening, closing = self._calls
        markers = (self._closing, opening)
        while marker := (yield from reader.stream_until(markers, self._reasoning, trimmed="\n")):
            if marker.endswith(self._closing):
                return
            reader.position -= len(marker)
            yield from self._tried_or_last(opening, closing)

    def _tried_or_last(self, opening: str, closing: str) -> Step[None]:
        """Reads calls: reasoning, unless the output ends with them."""
        reader = self._reader
        reader.pin()
        yield from reader.skip("\n")
        while (yield from reader.accept(opening)):
            found = yield from reader.stream_until(
                (closing, self._closing), lambda _: None, trimmed="\n"
            )
            if found.endswith(self._closing):
                reader.position -= len(found)
                self._reasoning(reader.text[: reader.position])
                reader.unpin()
                return
            end = reader.position
            yield from reader.skip()
        text = reader.text[: reader.position]
        if (yield from reader.accept(self._closing)):
            text = text.rstrip("\n")
        if (yield from reader.skip()):
            reader.position = end
            self._reasoning(reader.text[:end])
        else:
            self.tail = text
        reader.unpin()

    def _until(self, marker: str, emit: Callable[[str], object]) -> Step[None]:
        yield from self._reader.stream_until((marker,), emit, trimmed="\n")
