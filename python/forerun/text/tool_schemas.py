"""Tools for chat templates: JSON schemas as they are, and functions as schemas."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

from forerun.errors import InvalidArgumentError
from forerun.util.checks import check_list
from forerun.util.interrupts import pass_on_interrupt

_JSON_TYPES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_EXPECTED = (
    "JSON schemas, or functions with type hints and a docstring that describes each argument"
)
_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Examples?):\s*")
_ARGUMENT = re.compile(r"(\s*)(\w+)(?:\s*\([^()]*\))?:\s*(.*)")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schemas(tools: Any) -> list[Any] | None:
    """The tools with functions replaced by their schemas; None stays None."""
    if tools is None:
        return None
    schemas: list[Any] = []
    for index, tool in enumerate(check_list("tools", tools, f"a list of {_EXPECTED}")):
        field = f"tools[{index}]"
        if isinstance(tool, dict):
            schemas.append(tool)
        elif inspect.isfunction(tool) or inspect.ismethod(tool):
            schemas.append(function_schema(field, tool))
        else:
            raise InvalidArgumentError(field, tool, _EXPECTED)
    return schemas


def function_schema(field: str, function: Callable[..., Any]) -> dict[str, Any]:
    """What a chat template shows of a function: from its signature and Google-style docstring."""
    name = function.__name__
    sections = _sections(inspect.getdoc(function) or "")
    described = _arguments(sections.get("Args", []))
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # of the annotations' own code
        pass_on_interrupt(error)
        raise InvalidArgumentError(field, f"{name}: {error}", _EXPECTED) from error
    properties: dict[str, Any] = {}
    required = []
    for argument, parameter in inspect.signature(function).parameters.items():
        where = f"{field}: {name}({argument})"
        if argument in ("self", "cls") and argument not in hints:
            continue
        if argument not in hints:
            raise InvalidArgumentError(where, "no type hint", _EXPECTED)
        if argument not in described:
            raise InvalidArgumentError(where, "no description in the docstring", _EXPECTED)
        schema = _schema(where, hints[argument])
        description = described[argument]
        if choices := _CHOICES.search(description):
            schema["enum"] = _choices(where, choices[1])
            description = description[: choices.start()].strip()
        schema["description"] = description
        properties[argument] = schema
        if parameter.default is parameter.empty:
            required.append(argument)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    described_function = {
        "name": name,
        "description": "\n".join(sections[""]).strip(),
        "parameters": parameters,
    }
    if "return" in hints:
        described_function |= _returned(field, hints["return"], sections.get("Returns"))
    return {"type": "function", "function": described_function}


def _returned(field: str, hint: Any, lines: list[str] | None) -> dict[str, Any]:
    try:
        schema = _schema(field, hint)
    except InvalidArgumentError:
        return {}  # the model does not write this
    if lines is not None:
        schema["description"] = inspect.cleandoc("\n".join(lines)).strip()
    return {"return": schema}


def _choices(where: str, text: str) -> list[Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{where} choices", text, "a JSON list") from error
    if not isinstance(values, list):
        raise InvalidArgumentError(f"{where} choices", text, "a JSON list")
    return [value.strip() if isinstance(value, str) else value for value in values]


def _sections(doc: str) -> dict[str, list[str]]:
    """The lines of a docstring by section; the description is under the empty name."""
    name = ""
    sections: dict[str, list[str]] = {"": []}
    for line in doc.splitlines():
        if header := _SECTION.fullmatch(line.rstrip()):
            name = header[1]
            sections[name] = []
        else:
            sections[name].append(line)
    return sections


def _arguments(lines: list[str]) -> dict[str, str]:
    """The descriptions of an `Args:` section; deeper lines belong to the one above them."""
    described: dict[str, str] = {}
    name, indent = "", None
    for line in lines:
        if not line.strip():
            continue
        match = _ARGUMENT.fullmatch(line)
        if match and (indent is None or len(match[1]) <= indent):
            name, indent = match[2], len(match[1])
            described[name] = match[3].strip()
        elif name:
            described[name] = f"{described[name]} {line.strip()}".strip()
    return described


def _schema(where: str, hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(where, [member.value for member in hint])
    if origin is typing.Literal:
        return _enum(where, list(arguments))
    if origin in (typing.Union, types.UnionType):
        return _union(where, arguments)
    if origin is list:
        return {"type": "array", "items": _schema(where, arguments[0])}
    if origin is tuple and len(arguments) > 1 and ... not in arguments:
        return {"type": "array", "prefixItems": [_schema(where, each) for each in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(where, arguments[1])}
    raise InvalidArgumentError(where, hint, "a type hint that JSON can express")


def _union(where: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    parts = [_schema(where, each) for each in arguments if each is not type(None)]
    union: dict[str, Any]
    if len(parts) == 1:
        union = parts[0]
    elif all(set(part) == {"type"} for part in parts):
        names = sorted({part["type"] for part in parts})
        union = {"type": names[0] if len(names) == 1 else names}
    else:
        union = {"anyOf": parts}
    if type(None) in arguments:
        union["nullable"] = True
    return union


def _enum(where: str, values: list[Any]) -> dict[str, Any]:
    if not values or any(type(value) not in _JSON_TYPES for value in values):
        raise InvalidArgumentError(where, values, "values that JSON can express")
    names = list(dict.fromkeys(_JSON_TYPES[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}
