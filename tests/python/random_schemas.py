"""Random JSON schemas whose texts are bounded, so that a text ends before its tokens do."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("name", "first_name", "age", "unit price", "tags", "is_active", "naïve", "x", "size", "id")
PATTERNS = ("^[a-c]{2,5}$", "^[A-Z]{3}-[0-9]{2,4}$", "^(yes|no|maybe)$", "^\\d{1,3}(\\.\\d{2})?$")


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """An object with one to four properties, each of any kind."""
    return _object(rng, depth)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randint(1, 4))
    required = [name for name in names if rng.random() < 0.7]
    return {
        "type": "object",
        "properties": {name: _any(rng, depth - 1) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _string, _integer, _number, _enum, _const, _boolean]
    if depth > 0:
        kinds += [_object, _array, _any_of]
    kind = rng.choice(kinds)
    return kind(rng, depth)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 12)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(-500, 500)
    schema: dict[str, Any] = {"type": "integer", "minimum": least}
    schema["maximum"] = least + rng.choice((0, 3, 40, 12345))
    return schema


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    # Digits after the point have no bound of their own.
    return {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": rng.randint(0, 1000)}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    values = ["red", "green", "dark blue", 'quo"te', "é", 3, -7, True, None, 12.5]
    return {"enum": rng.sample(values, rng.randint(1, 4))}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "const": rng.choice(["a long constant text, to be forced", 42, None, ["a", 1], {"k": 2}])
    }


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _any(rng, depth - 1),
        "minItems": least,
        "maxItems": least + rng.randint(0, 2),
    }


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(2, 3))]}
