"""Grammars of the arguments of tool calls."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.text.json_schemas import References
from forerun.text.tool_parsers.tagged_calls import allowed_types

_DEFINITIONS = ("$defs", "definitions")
# The spaces that chat templates write.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Rules:
    """Rules of a grammar in Lark's notation.

    Args:
        special_tokens: ids of markers that are special tokens; other markers are text.
    """

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self.special_tokens = special_tokens
        self._rules: dict[str, str] = {}

    def text(self) -> str:
        """All rules, one on each line."""
        return "".join(f"{name}: {body}\n" for name, body in self._rules.items())

    def add(self, name: str, body: str) -> str:
        """Adds a rule; returns its name."""
        self._rules[name] = body
        return name

    def add_new(self, prefix: str, body: str) -> str:
        """Adds a rule under a name of its own, which is returned."""
        return self.add(f"{prefix}_{len(self._rules)}", body)

    def json_text(self, value: Any) -> str:
        """A value as JSON."""
        return json.dumps(value, ensure_ascii=False)

    def literal(self, text: str) -> str:
        """A text."""
        return self.json_text(text)

    def marker(self, text: str) -> str:
        """A marker: a special token, which more text may follow, or a text."""
        for special, token in self.special_tokens.items():
            if text.startswith(special):
                return f"<[{token}]> {self.literal(text.removeprefix(special))}"
        return self.literal(text)

    def json(self, schema: Any) -> str:
        """A JSON value."""
        if isinstance(schema, Mapping):
            schema = {"x-guidance": _SPACING, **schema}
        return self.add_new("json", f"%json {json.dumps(schema)}")

    def text_until(self, marker: str) -> tuple[str, str]:
        """Text without a marker, and such text with the marker at its end."""
        escaped = re.escape(marker).replace("/", r"\/").replace("\\\n", r"\n")
        text = self.add_new("TEXT", rf"/(.|\n)*/ & ~/(.|\n)*{escaped}(.|\n)*/")
        if marker in self.special_tokens:
            return text, f"{text} {self.marker(marker)}"
        name = f"until_{len(self._rules)}"
        self.add(f"{name}[lazy]", rf"/(.|\n)*{escaped}/")
        return text, name


def qwen_parameters(rules: Rules, schema: Mapping[str, Any]) -> str:
    """The parameters of a call in Qwen's notation, in the schema's order."""
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    parts = []
    for key, part in properties.items():
        if part is False:
            continue
        closing = "\n</parameter>\n"
        types = allowed_types(part)
        part = part if isinstance(part, Mapping) else _ANYTHING  # True, which allows any value
        values = part.get("enum", [part["const"]] if "const" in part else [])
        if values:
            written = [each if isinstance(each, str) else rules.json_text(each) for each in values]
            value = f"({' | '.join(map(rules.literal, written))}) {rules.literal(closing)}"
        elif "string" in types:
            _, value = rules.text_until(closing)
        else:
            definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
            value = f"{rules.json({**definitions, **part})} {rules.literal(closing)}"
        opening = rules.literal(f"<parameter={key}>\n")
        rule = rules.add_new("parameter", f"{opening} {value}")
        parts.append(rule if key in required else f"{rule}?")
    if schema.get("additionalProperties") is not False:
        _, value = rules.text_until("\n</parameter>\n")
        name = rules.add_new("NAME", r"/[^<>\n]+/")
        start, end = rules.literal("<parameter="), rules.literal(">\n")
        parts.append(f"({rules.add_new('parameter', f'{start} {name} {end} {value}')})*")
    return " ".join(parts)


class _Gemma:
    """Rules for values in Gemma's notation, of a schema and its parts.

    Applies `type`, `enum`, `const`, `properties`, `required`, `items`, the number of items,
    `anyOf`, `oneOf` and references; of numbers also their limits. Other keywords are not applied.
    """

    def __init__(self, rules: Rules, root: Mapping[str, Any], quote: str) -> None:
        self._rules = rules
        self._references = References(root)
        self._quote = rules.marker(quote)
        self._quote_text = quote
        self._names: dict[int, str] = {}

    @functools.cached_property
    def _string(self) -> str:
        _, until = self._rules.text_until(self._quote_text)
        return self._rules.add_new("string", f"{self._quote} {until}")

    def value(self, schema: Any) -> str:
        """The rule of a value. Schemas may contain themselves."""
        key = id(schema) if isinstance(schema, Mapping) and schema else 0
        if key not in self._names:
            self._names[key] = name = self._rules.add_new("value", "")
            self._rules.add(name, " | ".join(self._alternatives(schema if key else _ANYTHING)))
        return self._names[key]

    def _alternatives(self, schema: Mapping[str, Any]) -> list[str]:
        target = self._references.target(schema)
        if target is not None:
            return [self.value(target)]
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return [self._constant(value) for value in values]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return [self.value(part) for part in schema[key] if part is not False]
        return [self._typed(kind, schema) for kind in sorted(allowed_types(schema))]

    def _constant(self, value: Any) -> str:
        rules = self._rules
        if isinstance(value, str):
            return f"{self._quote} {rules.literal(value)} {self._quote}"
        if isinstance(value, list):
            items = f" {rules.literal(',')} ".join(map(self._constant, value))
            return f"{rules.literal('[')} {items} {rules.literal(']')}"
        if isinstance(value, Mapping):
            pairs = f" {rules.literal(',')} ".join(
                f"{self._key(key)} {self._constant(value[key])}" for key in sorted(value)
            )
            return f"{rules.literal('{')} {pairs} {rules.literal('}')}"
        return rules.literal(rules.json_text(value))

    def _key(self, name: str) -> str:
        if re.fullmatch(r"[\w -]*\w", name):
            return self._rules.literal(f"{name}:")
        return f"{self._constant(name)} {self._rules.literal(':')}"

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "string":
            return self._string
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            return self.object(schema)
        limits = {key: schema[key] for key in _LIMITS if key in schema}
        return self._rules.json({"type": kind, **limits})

    def _array(self, schema: Mapping[str, Any]) -> str:
        rules = self._rules
        item = self.value(schema.get("items", _ANYTHING))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        opening, closing = rules.literal("["), rules.literal("]")
        if most == 0 or schema.get("items") is False:
            return f"{opening} {closing}"
        times = f"{max(least - 1, 0)},{'' if most is None else most - 1}"
        more = f"({rules.literal(',')} {item}){{{times}}}" if most != 1 else ""
        items = f"{item} {more}" if least else f"({item} {more})?"
        return f"{opening} {items} {closing}"

    def object(self, schema: Mapping[str, Any]) -> str:
        """The rule of an object, whose properties are sorted, as chat templates do."""
        rules = self._rules
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        opening, closing = map(rules.literal, "{}")
        other = None
        if schema.get("additionalProperties") is not False:
            key = rules.add_new("KEY", r"/[A-Za-z_][A-Za-z0-9_]*/")
            other = f"{key} {rules.literal(':')} {self.value(_ANYTHING)}"
        pairs = [
            (f"{self._key(name)} {self.value(part)}", name in required)
            for name, part in sorted(properties.items())
            if part is not False
        ]
        return rules.add_new("object", f"{opening} {_listed(rules, pairs, ',', other)} {closing}")


def _listed(rules: Rules, pairs: list[tuple[str, bool]], comma: str, other: str | None) -> str:
    """The pairs in this order with commas between them.

    Args:
        pairs: each with whether it is required.
        other: any number of these may follow.
    """
    separator = rules.literal(comma)
    first = after = ""
    if other is not None:
        after = rules.add_new("others", f"({separator} {other})*")
        first = rules.add_new("others", f"({other} {after})?")
    # From the last one on: the rest of the list where it is the first pair, or a later one.
    for pair, is_required in reversed(pairs):
        if is_required:
            first = rules.add_new("pairs", f"{pair} {after}")
            after = rules.add_new("pairs", f"{separator} {pair} {after}")
        else:
            whole = f"{pair} {after} | {first}" if first else f"({pair} {after})?"
            first = rules.add_new("pairs", whole)
            after = rules.add_new("pairs", f"({separator} {pair})? {after}")
    return first


_ANYTHING: Mapping[str, Any] = {}
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def gemma_object(rules: Rules, schema: Mapping[str, Any], quote: str) -> str:
    """The arguments of a call in Gemma's notation."""
    return _Gemma(rules, schema, quote).object(schema)


def python_arguments(rules: Rules, schema: Mapping[str, Any]) -> str:
    """The arguments of a call in Python's notation, with JSON values, as templates write them."""
    definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
    required = schema.get("required", [])
    pairs = []
    for name, part in schema.get("properties", {}).items():
        if not name.isidentifier():
            raise InvalidArgumentError("tools", name, "parameters whose names Python can write")
        if part is not False:
            value = rules.json({**definitions, **part} if isinstance(part, Mapping) else part)
            pairs.append((f"{rules.literal(f'{name}=')} {value}", name in required))
    other = None
    if schema.get("additionalProperties") is not False:
        name = rules.add_new("NAME", r"/[A-Za-z_][A-Za-z0-9_]*/")
        other = f"{name} {rules.literal('=')} {rules.json({})}"
    return _listed(rules, pairs, ", ", other)
