"""Grammars of callers: their notation, and limits that llguidance does not check."""

from __future__ import annotations

import re

from forerun.errors import InvalidArgumentError
from forerun.util.interrupts import pass_on_interrupt

# llguidance compiles rules recursively: at four times this it overflows a stack of 8 MiB.
_MAX_DEPTH = 300

_GBNF_RULE = re.compile(r"^\s*[\w.-]+\s*::=", re.MULTILINE)
# Parts without structure: strings, expressions (which do not span lines) and comments.
_NO_STRUCTURE = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|#[^\n]*')
_RULE = re.compile(r"^[ \t]*[?!]?(\w+)[^:\n|]*:", re.MULTILINE)


def to_lark(grammar: str) -> str:
    """Converts a grammar in Lark's or GBNF's notation to Lark's.

    Raises:
        InvalidArgumentError: it is GBNF that cannot be read, or nested too deeply.
    """
    if _GBNF_RULE.search(grammar):
        from llguidance.gbnf_to_lark import gbnf_to_lark

        try:
            grammar = gbnf_to_lark(grammar)
        except RecursionError:
            raise InvalidArgumentError("grammar", grammar, "a grammar nested less deep") from None
        except Exception as error:  # the converter raises exceptions of any type
            pass_on_interrupt(error)
            reason = f"{type(error).__name__}: {error}"
            raise InvalidArgumentError(
                "grammar", grammar, f"GBNF that llguidance can read: {reason}"
            ) from None
    _check_depth(grammar)
    return grammar


def _check_depth(grammar: str) -> None:
    """Raises InvalidArgumentError where rules that use each other are nested too deeply."""
    bare = _NO_STRUCTURE.sub(" ", grammar)
    parts = _RULE.split(bare)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    costs = {name: 1 + _num_open(body) for name, body in bodies.items()}
    uses = {name: re.findall(r"\w+", body) for name, body in bodies.items()}
    seen: set[str] = set()
    for start in bodies:  # in the order of the text, as llguidance does
        path = [(start, iter([start]))]
        depth = 0
        while path:
            name = next(path[-1][1], None)
            if name is None:
                owner, _ = path.pop()
                depth -= costs[owner] if path else 0
            elif name in bodies and name not in seen:
                seen.add(name)
                path.append((name, iter(uses[name])))
                depth += costs[name]
            if depth > _MAX_DEPTH:
                raise InvalidArgumentError(
                    "grammar",
                    f"rules nested more than {_MAX_DEPTH} levels deep",
                    f"at most {_MAX_DEPTH} levels of rules and brackets",
                )


def _num_open(body: str) -> int:
    """The most brackets that are open at once."""
    depth = deepest = 0
    for bracket in re.findall(r"[(\[)\]]", body):
        depth += 1 if bracket in "([" else -1
        deepest = max(deepest, depth)
    return deepest
