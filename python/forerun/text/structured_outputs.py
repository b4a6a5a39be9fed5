"""Structured output: what restricts texts, a schema, an expression, a list or a grammar."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.text.json_schemas import check_depth, closed, without_dead_ends
from forerun.text.user_grammars import to_lark
from forerun.util.checks import check_bool, check_list, check_str
from forerun.util.interrupts import pass_on_interrupt
from forerun.util.json_files import parse_json
from forerun.vllm_fields.arguments import checked_keywords

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
# Enough for indented JSON, and a limit for a text that is nothing but whitespace.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"


@checked_keywords
@dataclass(kw_only=True)
class StructuredOutputsParams:
    """Restricts a completion to one of five kinds of text. Wrong values raise at once.

    Attributes:
        json: valid JSON that follows this JSON schema, given as a dict or as text. Exactly one of
            `json`, `regex`, `choice`, `grammar` and `json_object` must be given.
        regex: a match of this regular expression, from its beginning to its end.
        choice: one of these strings.
        grammar: a text of this grammar, in Lark's or GBNF's notation (vLLM's EBNF).
        json_object: True for any JSON object.
        disable_any_whitespace: JSON without whitespace between its parts.
        disable_additional_properties: objects have only the properties that the schema names,
            unless it mentions additional ones itself.
        whitespace_pattern: JSON with this regular expression's whitespace between its parts; None
            is up to 40 spaces, tabs and line ends.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise InvalidArgumentError(
                "structured_outputs", given or None, f"exactly one of {', '.join(_KINDS)}"
            )
        for field in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, field)
            if value is not None and not check_str(field, value):
                raise InvalidArgumentError(field, value, "a text that is not empty")
        if self.json_object is not None and not check_bool("json_object", self.json_object):
            raise InvalidArgumentError("json_object", False, "True, or no json_object")
        check_bool("disable_any_whitespace", self.disable_any_whitespace)
        check_bool("disable_additional_properties", self.disable_additional_properties)
        self._check_choice()
        self._refuse_json_options()
        if self.json is not None or self.json_object:
            self._schema()

    @property
    def kind(self) -> str:
        """The one field that is given."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    def _check_choice(self) -> None:
        if self.choice is None:
            return
        self.choice = check_list("choice", self.choice, "a list of at least one string")
        if not self.choice:
            raise InvalidArgumentError("choice", self.choice, "a list of at least one string")
        for text in self.choice:
            if not check_str("choice", text):
                raise InvalidArgumentError("choice", text, "strings that are not empty")

    def _refuse_json_options(self) -> None:
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise InvalidArgumentError(
                "whitespace_pattern", self.whitespace_pattern, "none with disable_any_whitespace"
            )
        if self.kind in ("json", "json_object"):
            return
        for option in ("disable_any_whitespace", "disable_additional_properties"):
            if getattr(self, option):
                raise InvalidArgumentError(option, True, f"no such option with {self.kind}")
        if self.whitespace_pattern is not None:
            raise InvalidArgumentError(
                "whitespace_pattern", self.whitespace_pattern, f"no such option with {self.kind}"
            )

    def _schema(self) -> Any:
        """The schema as parsed JSON, checked for its depth."""
        if self.json is None:
            return {"type": "object"}
        text = self.json
        if not isinstance(text, str):
            if not isinstance(text, Mapping | bool):
                raise InvalidArgumentError("json", text, "a JSON schema: a dict, or its text")
            try:
                text = json.dumps(text, allow_nan=False)
            except Exception as error:  # a mapping's methods may raise anything
                pass_on_interrupt(error)
                reason = f"{type(error).__name__}: {error}"
                expected = f"a JSON schema that JSON can write ({reason})"
                raise InvalidArgumentError("json", "a dict that is no JSON", expected) from error
        schema = parse_json(text, "json", "a JSON schema", InvalidArgumentError)
        if not isinstance(schema, dict | bool):
            raise InvalidArgumentError("json", self.json, "a JSON schema: a dict, or its text")
        check_depth(schema)
        return closed(schema) if self.disable_additional_properties else schema

    def key(self) -> str:
        """Equal for equal grammars that are given in the same way."""
        is_json = self.kind in ("json", "json_object")
        value = self._schema() if is_json else getattr(self, self.kind)
        text = json.dumps([self.kind, value, self._whitespace() if is_json else None])
        return hashlib.sha256(text.encode()).hexdigest()  # grammars may be long

    def _whitespace(self) -> dict[str, Any]:
        if self.disable_any_whitespace:
            return {"whitespace_flexible": False}
        return {"whitespace_pattern": self.whitespace_pattern or _WHITESPACE}

    def _finite_schema(self) -> Any:
        """The schema without what llguidance cannot finish."""
        from forerun.text.grammar_probes import accepts, expression_error

        if self.whitespace_pattern and (why := expression_error(self.whitespace_pattern)):
            raise InvalidArgumentError("whitespace_pattern", self.whitespace_pattern, why)
        return without_dead_ends(self._schema(), accepts)

    def _choices(self) -> str:
        # One terminal: alternatives of a rule are items of the parser, and those are limited.
        return "CHOICE: " + " | ".join(
            json.dumps(text) for text in dict.fromkeys(self.choice or ())
        )

    def lark_rules(self, name: str) -> str:
        """Rules in Lark's notation, the first of which, of this name, is the whole text."""
        if self.kind in ("json", "json_object"):
            schema = self._finite_schema()
            if schema is not False:
                rest = {} if schema is True else schema
                schema = {"x-guidance": self._whitespace(), **rest}
            return f"{name}: %json {json.dumps(schema)}\n"
        if self.choice is not None:
            return f"{name}: CHOICE\n{self._choices()}\n"
        if self.grammar is not None:
            return f"{name}: %lark {{\n{to_lark(self.grammar)}\n}}\n"
        # What is escaped already stays as it is.
        regex = re.sub(r"(\\.)|/|\n", _escaped_for_lark, self.regex or "", flags=re.DOTALL)
        return f"{name}: EXPRESSION\nEXPRESSION: /{regex}/\n"

    def grammar_text(self) -> str:
        """The grammar in llguidance's own notation."""
        matcher = load_llguidance().LLMatcher
        if self.kind in ("json", "json_object"):
            schema = json.dumps(self._finite_schema())
            text = matcher.grammar_from_json_schema(schema, defaults=self._whitespace())
        elif self.choice is not None:
            text = matcher.grammar_from_lark(f"start: CHOICE\n{self._choices()}")
        elif self.grammar is not None:
            text = matcher.grammar_from_lark(to_lark(self.grammar))
        else:
            text = matcher.grammar_from_regex(self.regex)
        return str(text)


def _escaped_for_lark(match: re.Match[str]) -> str:
    return match[1] or {"/": r"\/", "\n": r"\n"}[match[0]]


def load_llguidance() -> Any:
    """The package, which only requests with a structure need."""
    try:
        import llguidance
    except ImportError as error:
        raise InvalidArgumentError(
            "structured_outputs", str(error), "the package llguidance: pip install llguidance"
        ) from error
    return llguidance
