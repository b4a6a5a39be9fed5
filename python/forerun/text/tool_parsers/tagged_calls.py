"""Calls whose arguments models write in notations of their own, here converted to JSON.

What is converted is passed on as soon as it is certain, string values piece by piece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from forerun.text.tool_parsers.parser import ToolCallParser
from forerun.text.tool_parsers.reader import SPACE, Step

_MAX_DEPTH = 64


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class ConvertingParser(ToolCallParser):
    """Converts values in a notation of its own."""

    # What ends a value that is neither a string nor in brackets.
    _ends = ",]}"

    def _characters(self, text: str) -> None:
        """Adds to a string of the arguments."""
        self._arguments(_json(text)[1:-1])

    def _string(self) -> Step[bool | None]:
        """Converts a string; False if it does not end, None if there is none."""
        raise NotImplementedError

    def _key(self) -> Step[bool]:
        """Converts the key of a pair and what follows it; False if it is malformed."""
        raise NotImplementedError

    def _value(self, depth: int) -> Step[bool]:
        """Converts a value; False if it is malformed."""
        reader = self._reader
        first = yield from reader.skip()
        if depth > _MAX_DEPTH:
            return False
        if first and first in _BRACKETS:
            return (yield from self._items(first, depth))
        is_string = yield from self._string()
        if is_string is not None:
            return is_string
        bare = yield from reader.take_while(lambda character: character not in self._ends)
        if not (yield from reader.peek()):
            return False  # it may not be complete
        self._arguments(_json(_scalar(bare)))
        return True

    def _items(self, bracket: str, depth: int) -> Step[bool]:
        """Converts an object or an array."""
        reader = self._reader
        closing = _BRACKETS[bracket]
        self._arguments("{" if bracket == "{" else "[")
        reader.position += 1
        separator = ""
        while (character := (yield from reader.skip())) != closing:
            if separator and character == ",":
                reader.position += 1
                if (yield from reader.skip()) == closing:
                    continue
            elif separator or not character:
                return False
            self._arguments(separator)
            separator = ", "
            if bracket == "{" and not (yield from self._key()):
                return False
            if not (yield from self._value(depth + 1)):
                return False
        self._arguments("}" if bracket == "{" else "]")
        reader.position += 1
        return True


_BRACKETS = {"{": "}", "[": "]", "(": ")"}


class GemmaParser(ConvertingParser):
    """`call:name{key:value,...}` between two markers, strings between two quotes.

    Args:
        opening: the marker before a call.
        closing: the marker after it.
        quote: what stands for a quotation mark.
    """

    _ends = ",]}<"

    def __init__(self, opening: str, closing: str, quote: str) -> None:
        self._opening = opening
        self._closing = closing
        self._quote = quote
        super().__init__()

    def _parse(self) -> Step[None]:
        yield from self._parse_marked(self._opening)

    def _marked(self, marker: str) -> Step[bool]:
        reader = self._reader
        yield from reader.skip()
        if not (yield from reader.accept("call:")):
            return False
        name = yield from reader.take_while(lambda character: character not in "{<" + SPACE)
        if not name or (yield from reader.skip()) != "{":
            return False
        self._start(name)
        yield from self._value(0)
        yield from reader.skip()
        yield from self._end(self._closing)
        return True

    def _string(self) -> Step[bool | None]:
        reader = self._reader
        if not (yield from reader.accept(self._quote)):
            rest = reader.text[reader.position :]
            # With the beginning of a quote the output ends.
            return False if rest and self._quote.startswith(rest) else None
        self._arguments('"')
        quote = yield from reader.stream_until((self._quote,), self._characters, is_closed=True)
        self._arguments('"' if quote else "")
        return bool(quote)

    def _key(self) -> Step[bool]:
        reader = self._reader
        if (yield from reader.accept(self._quote)):
            pieces: list[str] = []
            if not (yield from reader.stream_until((self._quote,), pieces.append)):
                return False
            key = "".join(pieces)
        else:
            key = yield from reader.take_while(lambda character: character not in ":,{}[]<")
            if (yield from reader.peek()) != ":":
                return False
            key = key.strip()
        if (yield from reader.skip()) == ":":
            reader.position += 1
        self._arguments(_json(key) + ": ")
        return True


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


class PythonicParser(ConvertingParser):
    """An output that begins with a list of calls in Python's notation: `[name(key=value), ...]`."""

    _ends = ",]})"

    def _parse(self) -> Step[None]:
        yield from self._try(self._list())
        yield from self._reader.stream_rest(self._content)

    def _list(self) -> Step[bool]:
        reader = self._reader
        if (yield from reader.skip()) != "[":
            return False
        reader.position += 1
        if not (yield from self._call()):
            return False
        while (yield from reader.skip()) == ",":
            if not (yield from self._try(self._next_call())):
                return True
        yield from reader.accept("]")
        yield from reader.skip()
        return True

    def _next_call(self) -> Step[bool]:
        self._reader.position += 1
        return (yield from self._call())

    def _call(self) -> Step[bool]:
        reader = self._reader
        yield from reader.skip()
        name = yield from reader.take_while(
            lambda character: character.isalnum() or character in "_.-"
        )
        if not name or not (yield from reader.accept("(")):
            return False
        separator = "{"
        while (yield from reader.skip()) != ")":
            key = yield from reader.take_while(
                lambda character: character.isalnum() or character == "_"
            )
            if not key or (yield from reader.skip()) != "=":
                return separator != "{"
            reader.position += 1
            if separator == "{":
                self._start(name)
            self._arguments(f"{separator}{_json(key)}: ")
            separator = ", "
            if not (yield from self._value(0)):
                return True
            if (yield from reader.skip()) == ",":
                reader.position += 1
        reader.position += 1
        if separator == "{":
            self._start(name)
        self._arguments("{}" if separator == "{" else "}")
        return True

    def _string(self) -> Step[bool | None]:
        reader = self._reader
        quote = yield from reader.peek()
        if not quote or quote not in "'\"":
            return None
        reader.position += 1
        self._arguments('"')
        while (found := (yield from reader.stream_until((quote, "\\"), self._characters))) == "\\":
            yield from self._escape()
        self._arguments('"' if found else "")
        return bool(found)

    def _escape(self) -> Step[None]:
        """Converts what follows a backslash. Unknown escapes stay as they are, as in Python."""
        reader = self._reader
        kind = yield from reader.peek()
        reader.position += len(kind)
        if kind in _HEX_DIGITS:
            digits = ""
            while len(digits) < _HEX_DIGITS[kind] and (yield from reader.peek()) in _HEX:
                digits += reader.text[reader.position]
                reader.position += 1
            self._characters(_character(digits, _HEX_DIGITS[kind]) or f"\\{kind}{digits}")
        else:
            known = _ESCAPES.get(kind, kind if kind in "'\"\\" else None)
            self._characters(f"\\{kind}" if known is None else known)

    def _key(self) -> Step[bool]:
        reader = self._reader
        is_string = yield from self._string()
        key = ""
        if is_string is None:  # JSON has no other keys than strings
            key = yield from reader.take_while(lambda character: character not in ":,}")
        yield from reader.skip()
        if is_string is False or not (yield from reader.accept(":")):
            return False
        self._arguments((_json(key.strip()) if is_string is None else "") + ": ")
        return True


_HEX = frozenset("0123456789abcdefABCDEF")


def _character(digits: str, length: int) -> str | None:
    """The character of a hexadecimal number; None if there is none."""
    number = int(digits, 16) if len(digits) == length else -1
    is_surrogate = 0xD800 <= number < 0xE000
    return chr(number) if 0 <= number < 0x110000 and not is_surrogate else None


_CONSTANTS = {"True": True, "False": False, "None": None}


def _scalar(text: str) -> Any:
    """The value of a text in JSON's notation, or one of Python's constants; else a string."""
    text = text.strip()
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # also of numbers and characters that JSON cannot write
        return text
    return value


class QwenCoderParser(ConvertingParser):
    """`<tool_call><function=name><parameter=key>value</parameter>...</function></tool_call>`.

    Args:
        tools: the request's tools. Their schemas say which values are not strings.
    """

    def __init__(self, tools: Any = ()) -> None:
        self._schemas = {name: schema for name, schema in map(_properties, tools)}
        super().__init__()

    def _parse(self) -> Step[None]:
        yield from self._parse_marked("<tool_call>", "<function=")

    def _marked(self, marker: str) -> Step[bool]:
        reader = self._reader
        if marker == "<tool_call>":
            yield from reader.skip()
            if not (yield from reader.accept("<function=")):
                return False
        name = yield from reader.take_while(lambda character: character not in "<>\n")
        if not name or not (yield from reader.accept(">")):
            return False
        self._start(name)
        separator = "{"
        yield from reader.skip()
        while (yield from reader.accept("<parameter=")):
            key = yield from reader.take_while(lambda character: character not in "<>\n")
            if not (yield from reader.accept(">")):
                return True
            self._arguments(f"{separator}{_json(key)}: ")
            separator = ", "
            if not (yield from self._parameter(self._schemas.get(name, {}).get(key))):
                return True
            yield from reader.skip()
        for literal in ("<parameter=", "</function>"):
            yield from reader.skip_beginning(literal)
        if (yield from reader.peek()):
            self._arguments("{}" if separator == "{" else "}")
        yield from reader.accept("</function>")
        yield from reader.skip()
        yield from self._end("</tool_call>")
        return True

    def _parameter(self, schema: Any) -> Step[bool]:
        """Converts a value; False if it does not end. The newlines around it are markup."""
        reader = self._reader
        yield from reader.accept("\n")
        ends = ("\n</parameter>", "</parameter>")
        types = allowed_types(schema)
        if types <= {"string"}:
            self._arguments('"')
            end = yield from reader.stream_until(ends, self._characters, is_closed=True)
            self._arguments('"' if end else "")
        else:
            pieces: list[str] = []
            end = yield from reader.stream_until(ends, pieces.append)
            if end:
                self._arguments(_json(_typed("".join(pieces), types)))
        return bool(end)


def _properties(tool: Any) -> tuple[str, Mapping[str, Any]]:
    """A tool's name and the schemas of its parameters."""
    function = tool["function"]
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return function["name"], properties if isinstance(properties, Mapping) else {}


_ANY = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})


def allowed_types(schema: Any) -> frozenset[str]:
    """The JSON types that a schema allows; an unknown parameter is a string.

    Of what is no JSON schema, the parts that can be read count: tools are not checked where no
    grammar is made of them.
    """
    found: set[str] = set()
    waiting = [schema]
    while waiting:  # no recursion: schemas may be nested deeper than Python's stack
        each = waiting.pop()
        if not isinstance(each, Mapping):
            found |= _ANY if each is True else {"string"}
            continue
        values = [each["const"]] if "const" in each else each.get("enum")
        kinds = each.get("type")
        parts = next((each[key] for key in ("anyOf", "oneOf") if key in each), None)
        if isinstance(values, list):
            found |= set(map(_type, values))
        elif isinstance(kinds, str | list):
            named = [kinds] if isinstance(kinds, str) else kinds
            found |= {kind for kind in named if isinstance(kind, str) and kind in _ANY}
        elif isinstance(parts, list):
            waiting += parts
        else:
            found |= _ANY
    return frozenset(found)


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _typed(text: str, types: frozenset[str]) -> Any:
    """A parameter's value; a string where the text is none of the types."""
    value = _scalar(text)
    kind = _type(value)
    fits = kind in types or (kind == "integer" and "number" in types)
    return value if fits else text
