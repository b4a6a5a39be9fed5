"""Calls that models write as JSON: Hermes and Qwen, SmolLM, Llama 3, Mistral."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable

from forerun.text.tool_parsers.parser import ToolCallParser
from forerun.text.tool_parsers.reader import SPACE, Step

_ARGUMENTS = ("arguments", "parameters")
# Keys that a call may have beside its name and arguments.
_OTHERS = ("id", "type")
_STRUCTURE = re.compile(r'["{}\[\],\s]')
_IN_STRING = re.compile(r'["\\\n]')


class JsonCallParser(ToolCallParser):
    """Reads JSON objects with a name and arguments. The arguments are passed on as they are."""

    # What ends a call even within a string of its arguments, after a newline: JSON strings have
    # none, so that such a string was not closed.
    _close = ""

    def _calls(self, *, is_marked: bool) -> Step[bool]:
        """Reads a call, or a list of calls; False if there is none."""
        reader = self._reader
        if (yield from reader.skip()) != "[":
            return (yield from self._call(is_marked=is_marked))
        reader.position += 1
        if (yield from reader.skip()) == "]":
            reader.position += 1
            return True
        if not (yield from self._call(is_marked=is_marked)):
            return False
        while (yield from reader.skip()) == ",":
            if not (yield from self._try(self._next_call(is_marked))):
                return True
        yield from reader.accept("]")
        return True

    def _next_call(self, is_marked: bool) -> Step[bool]:
        self._reader.position += 1
        return (yield from self._call(is_marked=is_marked))

    def _call(self, *, is_marked: bool) -> Step[bool]:
        """Reads an object; False if it is no call.

        Without a marker before it, an object is a call only if it has arguments and no keys that
        calls do not have.
        """
        reader = self._reader
        name: str | None = None
        arguments: str | None = None  # read before the name was known
        has_started = False
        if (yield from reader.skip()) != "{":
            return False
        separator = "{"
        while separator == "{" or separator == ",":
            reader.position += 1
            yield from reader.skip()
            key = yield from self._string()
            if key is None or not (is_marked or key in ("name", *_ARGUMENTS, *_OTHERS)):
                return has_started
            if (yield from reader.skip()) != ":":
                return has_started
            reader.position += 1
            yield from reader.skip()
            if key == "name" and name is None:
                name = yield from self._string()
                if name is None:
                    return False
            elif key in _ARGUMENTS and not has_started and arguments is None:
                pieces: list[str] = []
                has_started = name is not None
                if name is not None:
                    self._start(name)
                if not (yield from self._value(self._arguments if has_started else pieces.append)):
                    return has_started
                arguments = "".join(pieces)
            elif not (yield from self._value(lambda _: None)):
                return has_started
            separator = yield from reader.skip()
        if separator != "}" or name is None:
            return has_started
        reader.position += 1
        if not has_started:
            if arguments is None and not is_marked:
                return False
            self._start(name)
            self._arguments(arguments or "{}")
        return True

    def _string(self) -> Step[str | None]:
        """Reads a JSON string; None if there is none."""
        if (yield from self._reader.peek()) != '"':
            return None
        pieces: list[str] = []
        yield from self._quoted(pieces.append)
        try:
            text = str(json.loads("".join(pieces), strict=False))
            text.encode()
        except ValueError:  # also of escapes that are half of a character
            return None
        return text

    def _value(self, emit: Callable[[str], object]) -> Step[bool]:
        """Hands on the text of a JSON value; False if it does not end.

        A string is handed on decoded: arguments as a string are the text of a JSON object.
        """
        reader = self._reader
        first = yield from reader.peek()
        if first == '"':
            text = yield from self._string()
            emit(text or "")
            return text is not None
        depth = 0
        while character := (yield from reader.stream_to(_STRUCTURE, emit)):
            if depth == 0 and character not in "{[":
                return character not in '"{['
            if character == '"':
                if not (yield from self._quoted(emit)):
                    return False
                continue
            depth += (character in "{[") - (character in "}]")
            emit(character)
            reader.position += 1
            if depth == 0:
                return True
        return False

    def _quoted(self, emit: Callable[[str], object]) -> Step[bool]:
        """Hands on a string with its quotes; False if it does not end."""
        reader = self._reader
        emit('"')
        reader.position += 1
        while character := (yield from reader.stream_to(_IN_STRING, emit)):
            if character == "\n" and (yield from self._closes()):
                return False
            if character == "\\":
                reader.position += 1
                escaped = yield from reader.peek()
                emit("\\" + escaped)
                reader.position += len(escaped)
                continue
            emit(character)
            reader.position += 1
            if character == '"':
                return True
        return False

    def _closes(self) -> Step[bool]:
        """Whether `_close` follows the newline that comes next; consumes nothing."""
        closes = bool(self._close) and (yield from self._reader.accept("\n" + self._close))
        self._reader.position -= len("\n" + self._close) if closes else 0
        return closes


class HermesParser(JsonCallParser):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, or a list of such objects."""

    _close = "</tool_call>"

    def _parse(self) -> Step[None]:
        yield from self._parse_marked("<tool_call>")

    def _marked(self, marker: str) -> Step[bool]:
        if not (yield from self._calls(is_marked=True)):
            return False
        # Models close brackets too often, and sometimes forget the tag.
        yield from self._reader.skip(SPACE + "}]")
        yield from self._end(self._close)
        return True


class LlamaParser(JsonCallParser):
    """An output that begins with `{"name": ..., "parameters": {...}}`; semicolons between calls."""

    def _parse(self) -> Step[None]:
        reader = self._reader
        if (yield from self._try(self._first_call())):
            while (yield from reader.skip(SPACE + ";")) == "{":
                if not (yield from self._try(self._call(is_marked=False))):
                    break
        yield from reader.stream_rest(self._content)

    def _first_call(self) -> Step[bool]:
        yield from self._reader.skip()
        yield from self._reader.accept("<|python_tag|>")
        return (yield from self._calls(is_marked=False))


class MistralParser(JsonCallParser):
    """`[TOOL_CALLS]` and a list of JSON objects, or a name, `[ARGS]` and a JSON object."""

    def _new_id(self) -> str:
        return secrets.token_hex(5)[:9]  # Mistral's templates accept no other length

    def _parse(self) -> Step[None]:
        yield from self._parse_marked("[TOOL_CALLS]")

    def _marked(self, marker: str) -> Step[bool]:
        reader = self._reader
        if (yield from reader.skip()) in ("[", "{"):
            return (yield from self._calls(is_marked=True))
        name = yield from reader.take_while(lambda character: character not in "[{" + SPACE)
        if not name:
            return False
        yield from reader.skip()
        if (yield from reader.accept("[CALL_ID]")):
            yield from reader.take_while(lambda character: character not in "[{")
        yield from reader.accept("[ARGS]")
        if (yield from reader.skip()) != "{":
            return False
        self._start(name)
        yield from self._value(self._arguments)
        return True
