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
    """

    def __init__(
        self, opening: str, closing: str, *, starts_inside: bool, is_repeated: bool
    ) -> None:
        self._opening = opening
        self._closing = closing
        self._starts_inside = starts_inside
        self._is_repeated = is_repeated
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
                yield from self._until(self._closing, self._reasoning)
                yield from reader.skip("\n")
            if not self._is_repeated:
                break
            yield from self._until(self._opening, self._content)
            if not (yield from reader.peek()):
                break
            is_inside = True
        yield from reader.stream_rest(self._content)

    def _until(self, marker: str, emit: Callable[[str], object]) -> Step[None]:
        yield from self._reader.stream_until((marker,), emit, trimmed="\n")
