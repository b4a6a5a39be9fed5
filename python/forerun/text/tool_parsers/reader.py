"""Text that arrives in pieces, read as if it were there as a whole."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
# A step of a parser: it yields where it needs more text, and returns what it has read.
Step = Generator[None, None, T]

SPACE = " \t\r\n"


@functools.cache
def _expression(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a marker, or at the end of the text the beginning of one."""

    def beginning(marker: str) -> str:
        rest = f"(?:\\Z|{beginning(marker[1:])})" if len(marker) > 1 else ""
        return re.escape(marker[0]) + rest

    return re.compile("|".join(map(beginning, sorted(markers, key=len, reverse=True))))


class Reader:
    """A cursor over text that is appended piece by piece.

    A step decides from the text alone, never from where a piece ends, so that any division into
    pieces gives the same result.

    Attributes:
        met_end: since `pin` was called, more text was wanted than the whole output has.
    """

    def __init__(self) -> None:
        self.text = ""  # from the pinned position on, or else from about `position` on
        self.position = 0
        self.met_end = False
        self._is_pinned = False
        self._has_ended = False

    def append(self, piece: str) -> None:
        """Adds text."""
        self.text += piece

    def end(self) -> None:
        """No more text comes."""
        self._has_ended = True

    def pin(self) -> None:
        """Keeps the text from here on, for `rewind`."""
        self.unpin()
        self._drop()
        self._is_pinned = True
        self.met_end = False

    def unpin(self) -> None:
        """Lets the text before the position go."""
        self._is_pinned = False

    def rewind(self) -> None:
        """Goes back to where `pin` was called."""
        self.position = 0

    def _drop(self) -> None:
        self.text = self.text[self.position :]
        self.position = 0

    def more(self) -> Step[bool]:
        """Waits for more text; False if none comes."""
        if not self._is_pinned:
            self._drop()
        size = len(self.text)
        while len(self.text) == size and not self._has_ended:
            yield
        if len(self.text) > size:
            return True
        self.met_end = True
        return False

    def peek(self) -> Step[str]:
        """The next character; empty at the end."""
        while self.position == len(self.text):
            if not (yield from self.more()):
                return ""
        return self.text[self.position]

    def skip(self, characters: str = SPACE) -> Step[str]:
        """Skips these characters; returns the next other one, empty at the end."""
        while (character := (yield from self.peek())) and character in characters:
            self.position += 1
        return character

    def accept(self, literal: str) -> Step[bool]:
        """Consumes a literal if it comes next."""
        while True:
            following = self.text[self.position : self.position + len(literal)]
            if following == literal:
                self.position += len(literal)
                return True
            if not literal.startswith(following) or not (yield from self.more()):
                return False

    def skip_beginning(self, literal: str) -> Step[None]:
        """Skips the beginning of a literal if the text ends with it."""
        while literal.startswith(rest := self.text[self.position :]) and rest != literal:
            if not (yield from self.more()):
                self.position = len(self.text)
                return

    def take_while(self, characters: Callable[[str], bool]) -> Step[str]:
        """Consumes and returns characters as long as a condition holds."""
        taken = ""
        while (character := (yield from self.peek())) and characters(character):
            taken += character
            self.position += 1
        return taken

    def stream_until(
        self,
        markers: tuple[str, ...],
        emit: Callable[[str], object],
        trimmed: str = "",
        *,
        is_closed: bool = False,
    ) -> Step[str]:
        """Hands on text up to the first of some markers, and holds only what may belong to one.

        Consumes and returns the marker, with all the `trimmed` characters before it; empty at the
        end of the text, all of which is handed on then. With `is_closed`, a marker has to come, so
        that the beginning of one at the end of the text is not handed on.
        """
        search = _expression(markers).search
        while True:
            match = search(self.text, self.position)
            end = match.start() if match else len(self.text)
            while end > self.position and self.text[end - 1] in trimmed:
                end -= 1
            if end > self.position:
                emit(self.text[self.position : end])
            self.position = end
            if match and match[0] in markers:
                self.position = match.end()
                return self.text[end : self.position]
            if not (yield from self.more()):
                if not is_closed:
                    emit(self.text[self.position :])
                self.position = len(self.text)
                return ""

    def stream_to(self, pattern: re.Pattern[str], emit: Callable[[str], object]) -> Step[str]:
        """Hands on text up to the first character that matches; returns it, empty at the end."""
        while True:
            match = pattern.search(self.text, self.position)
            end = match.start() if match else len(self.text)
            emit(self.text[self.position : end])
            self.position = end
            if match or not (yield from self.more()):
                return match[0] if match else ""

    def stream_rest(self, emit: Callable[[str], object]) -> Step[None]:
        """Hands on all text to the end."""
        while (yield from self.peek()):
            emit(self.text[self.position :])
            self.position = len(self.text)
