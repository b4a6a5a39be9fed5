"""JSON schemas as trees of subschemas, and which of them some text satisfies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from forerun.errors import InvalidArgumentError

# Where subschemas are, in the drafts from 4 to 2020-12. Every other value is data.
_ONE = (
    *("additionalProperties", "unevaluatedProperties", "propertyNames", "contains", "not"),
    *("additionalItems", "unevaluatedItems", "items", "if", "then", "else", "contentSchema"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

# llguidance compiles schemas recursively: at four times this it overflows a stack of 8 MiB.
_MAX_DEPTH = 400

Schema = Any  # a parsed schema: a dict or a bool
# Whether llguidance accepts the prefix of a text, without whitespace, under a schema of objects.
Accepts = Callable[[Mapping[str, Schema], str], bool]


def _children(schema: Schema) -> Iterator[Schema]:
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            yield from value
        elif key in _MAPS and isinstance(value, dict):
            yield from value.values()
        elif key in _ONE:
            yield value


def _with_children(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """A copy with each direct subschema changed."""
    if not isinstance(schema, dict):
        return schema
    changed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            changed[key] = [change(part) for part in value]
        elif key in _MAPS and isinstance(value, dict):
            changed[key] = {name: change(part) for name, part in value.items()}
        else:
            changed[key] = change(value) if key in _ONE else value
    return changed


def closed(schema: Schema) -> Schema:
    """The schema with objects that have only the properties it names."""
    result = _with_children(schema, closed)
    if not isinstance(schema, dict):
        return result
    is_object = schema.get("type") == "object" or isinstance(schema.get("properties"), dict)
    speaks = {"additionalProperties", "unevaluatedProperties", "patternProperties"} & set(schema)
    if is_object and not speaks:
        result["additionalProperties"] = False
    return result


class References:
    """The targets of the references of a schema."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._named: dict[str, Schema] = {}
        waiting = [root]
        while waiting:
            schema = waiting.pop()
            if isinstance(schema, dict):
                if isinstance(schema.get("$anchor"), str):
                    self._named["#" + schema["$anchor"]] = schema
                if isinstance(schema.get("$id"), str):
                    self._named[schema["$id"]] = schema
                waiting += _children(schema)

    def target(self, schema: Schema) -> Schema | None:
        """The schema that a $ref refers to; None if there is none that is local."""
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str):
            return None
        if reference in self._named:
            return self._named[reference]
        base, _, pointer = reference.partition("#")
        value = self._named.get(base, self._root)
        for part in pointer.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and name in value:
                value = value[name]
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                return None
        return value


def check_depth(root: Schema) -> None:
    """Raises InvalidArgumentError for a schema that is nested too deep, references followed."""
    references = References(root)
    seen = {id(root)}
    path = [_nested(root, references)]
    while path:
        schema = next(path[-1], None)
        if schema is None:
            path.pop()
        elif id(schema) not in seen and isinstance(schema, dict):
            seen.add(id(schema))
            path.append(_nested(schema, references))
            if len(path) > _MAX_DEPTH:
                raise InvalidArgumentError(
                    "json",
                    f"a JSON schema nested more than {_MAX_DEPTH} levels deep",
                    f"at most {_MAX_DEPTH} levels, those of references included",
                )


def _nested(schema: Schema, references: References) -> Iterator[Schema]:
    target = references.target(schema)
    if target is not None:
        yield target
    yield from _children(schema)


def without_dead_ends(root: Schema, accepts: Accepts) -> Schema:
    """An equivalent schema without branches that no finite text satisfies.

    Subschemas that only an endless text satisfies become `false`. Patterns of properties that
    match no name beside `properties` are applied to those and dropped: llguidance would begin
    another property and find no name for it.
    """
    endless = _endless(root)

    def visit(schema: Schema) -> Schema:
        if id(schema) in endless:
            return False
        result = _with_children(schema, visit)
        if isinstance(schema, dict) and isinstance(result.get("patternProperties"), dict):
            _drop_patterns(result, accepts)
        return result

    if id(root) in endless:
        raise InvalidArgumentError(
            "json", json.dumps(root), "a JSON schema that some text of finite length satisfies"
        )
    return visit(root)


def _endless(root: Schema) -> set[int]:
    """The ids of subschemas that no finite text satisfies, because they require themselves."""
    references = References(root)
    schemas: dict[int, Schema] = {}
    waiting = [root]
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, dict) and id(schema) not in schemas:
            schemas[id(schema)] = schema
            waiting += _nested(schema, references)
    if not any("$ref" in schema for schema in schemas.values()):
        return set()
    unsatisfied = set(schemas)

    def ends(schema: Schema) -> bool:
        return id(schema) not in unsatisfied

    while True:  # until nothing changes: the least fixed point
        found = {key for key in unsatisfied if _ends_with(schemas[key], references, ends)}
        if not found:
            return unsatisfied
        unsatisfied -= found


def _ends_with(schema: Mapping[str, Any], references: References, ends: Any) -> bool:
    """Whether a finite text may satisfy the schema; `ends` answers that for its parts."""
    target = references.target(schema)
    if target is not None and not ends(target):
        return False
    if isinstance(schema.get("allOf"), list) and not all(map(ends, schema["allOf"])):
        return False
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and not any(map(ends, schema[key])):
            return False
    if schema.get("type") in ("object", ["object"]):
        properties, required = schema.get("properties"), schema.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            names = [name for name in required if isinstance(name, str) and name in properties]
            return all(ends(properties[name]) for name in names)
    if schema.get("type") in ("array", ["array"]) and isinstance(schema.get("minItems"), int):
        num_items, first = schema["minItems"], schema.get("prefixItems", [])
        if not isinstance(first, list):
            return True
        rest = [schema["items"]] if "items" in schema and num_items > len(first) else []
        return all(map(ends, first[:num_items] + rest))
    return True


def _drop_patterns(schema: dict[str, Any], accepts: Accepts) -> None:
    """Applies patterns that match no other names to the named properties instead, in place."""
    named = schema.get("properties", {})
    if not isinstance(named, dict):
        return
    properties, patterns = dict(named), dict(schema["patternProperties"])
    for pattern, part in schema["patternProperties"].items():
        if part is False or _has_other_name(named, {pattern: {"const": 1}}, False, accepts):
            continue
        del patterns[pattern]
        only = {"patternProperties": {pattern: {}}, "additionalProperties": False}
        for name in named:
            if accepts(only, "{" + json.dumps(name, ensure_ascii=False) + ":"):
                properties[name] = {"allOf": [properties[name], part]}
    taken = dict.fromkeys(patterns, False)
    if not _has_other_name(named, taken, {"const": 1}, accepts):
        schema["additionalProperties"] = False
    schema["properties"], schema["patternProperties"] = properties, patterns


def _has_other_name(
    named: Mapping[str, Schema], patterns: dict[str, Schema], others: Schema, accepts: Accepts
) -> bool:
    """Whether llguidance finds a name for a property other than the named ones."""
    probe = {
        "properties": {name: {"const": 1} for name in named},
        "required": list(named),
        "patternProperties": patterns,
        "additionalProperties": others,
    }
    names = "".join(json.dumps(name, ensure_ascii=False) + ":1," for name in named)
    return accepts(probe, "{" + names + '"')
