"""Checks of grammars with llguidance, byte by byte and without a model's vocabulary."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import llguidance

_MOST_STEPS = 200
_SPECIAL_TOKEN = re.compile(r"<\[[0-9,-]+\]>")
# These bytes bring a text to its end sooner.
_CLOSING = tuple(b'}]">)')


def limits() -> llguidance.LLParserLimits:
    """Limits of one step: many alternatives, but no expressions that take seconds.

    With llguidance's own limit on alternatives, a grammar that compiles can fail in the middle of a
    text, where more than 2,000 are open at once. Its limits on regular expressions are kept: with
    more, `((x{100}){100}){100}` takes most of a second for each token, of all requests.
    """
    return llguidance.LLParserLimits(
        max_items_in_row=100_000, step_max_items=500_000, verbose_errors=False
    )


@functools.cache
def _tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")


def _matcher(grammar: str) -> llguidance.LLMatcher:
    few = llguidance.LLParserLimits(step_max_items=5000)
    return llguidance.LLMatcher(_tokenizer(), grammar, log_level=0, limits=few)


def reason(matcher: llguidance.LLMatcher) -> str:
    """The message of a matcher's error, without the state that llguidance shows with it."""
    text: str = matcher.get_error()
    return re.split("<state>|<backtrace>", text, maxsplit=1)[0].strip()


def is_beyond_limit(matcher: llguidance.LLMatcher) -> bool:
    """Whether a matcher has failed for another reason than that no text can follow."""
    return matcher.is_error() and "NoExtension" not in matcher.get_error()


def expression_error(expression: str) -> str:
    """Why llguidance cannot compile a regular expression; empty where it can."""
    matcher = _matcher(llguidance.LLMatcher.grammar_from_regex(expression))
    return reason(matcher) if matcher.is_error() else ""


def schema_error(schema: Mapping[str, Any]) -> str:
    """Why llguidance cannot compile a JSON schema; empty where it can."""
    try:
        matcher = _matcher(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    except ValueError as error:
        return str(error)
    return reason(matcher) if matcher.is_error() else ""


def accepts(schema: Mapping[str, Any], beginning: str) -> bool:
    """Whether a text without whitespace may have this prefix under a schema of objects."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        json.dumps({"type": "object", **schema}), defaults={"whitespace_flexible": False}
    )
    data = list(beginning.encode())
    return _matcher(grammar).try_consume_tokens(data) == len(data)


def dead_end(grammar: str) -> str:
    """Why every text of a grammar ends in a dead end; empty if a short search does not show that.

    Searches depth first for a text that may end. Grammars with special tokens are not searched.
    """
    if _SPECIAL_TOKEN.search(grammar):
        return ""
    start = _matcher(grammar)
    why = "no text matches it"
    waiting = [b""]
    for _ in range(_MOST_STEPS):
        if not waiting:
            return why
        text = waiting.pop()
        matcher = start.deep_copy()
        matcher.consume_tokens(list(text))
        mask = matcher.compute_bitmask()
        if matcher.is_accepting():
            return ""
        if is_beyond_limit(matcher):
            return ""
        if matcher.is_error():
            why = f"after {text.decode(errors='replace')!r} nothing is allowed: {reason(matcher)}"
            continue
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        allowed.sort(key=_CLOSING.__contains__)
        waiting += [text + bytes([byte]) for byte in allowed]
    return ""
