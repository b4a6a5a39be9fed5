"""Conversations as chat templates read them: plain data, tool calls parsed, contents in one form.

Messages may be dicts, dataclasses or pydantic models. As in vLLM, a template that goes through the
parts of a content gets every content as a list of parts ("openai"), and any other template gets
text ("string").
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidArgumentError
from forerun.util.checks import (
    check_dict,
    check_int,
    check_list,
    check_number,
    check_str,
    is_integral,
    is_real,
)
from forerun.util.interrupts import pass_on_interrupt
from forerun.util.json_files import parse_json

if TYPE_CHECKING:
    from jinja2 import nodes

FORMATS = ("auto", "string", "openai")
# The key that holds the text of a content part, by the part's type.
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MAX_DEPTH = 64
_log = logging.getLogger("forerun")


def plain(field: str, value: Any, depth: int = 0) -> Any:
    """The value made of None, bools, numbers, strings, lists and dicts alone, which are new.

    Raises:
        InvalidArgumentError: it holds something else, or text that UTF-8 cannot encode.
    """
    if depth > _MAX_DEPTH:
        raise InvalidArgumentError(field, "nested values", f"at most {_MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return check_str(field, value)
    if callable(getattr(value, "model_dump", None)):
        try:
            value = value.model_dump()
        except Exception as error:
            pass_on_interrupt(error)
            raise InvalidArgumentError(field, value, f"data ({type(error).__name__})") from error
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [entry.name for entry in dataclasses.fields(value)]
        value = {name: getattr(value, name) for name in names}
    if isinstance(value, Mapping):
        return {
            _key(field, key): plain(f"{field}[{key!r}]", each, depth + 1)
            for key, each in check_dict(field, value).items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        items = check_list(field, value, "a list")
        return [plain(f"{field}[{index}]", each, depth + 1) for index, each in enumerate(items)]
    if is_integral(value):
        return check_int(field, value, least=-(2**127), most=2**127)
    if is_real(value):
        return check_number(field, value)
    raise InvalidArgumentError(field, value, "text, numbers, lists and dicts")


def _key(field: str, key: Any) -> str:
    return check_str(f"{field} key", key)


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """A conversation as plain dicts that have a role, without keys whose value is None.

    Raises:
        InvalidArgumentError: it is not a list of messages, or is empty.
    """
    expected = "a list of dicts with the keys 'role' and 'content'"
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidArgumentError("messages", messages, expected)
    read = []
    for index, message in enumerate(check_list("messages", messages, expected)):
        field = f"messages[{index}]"
        fields = plain(field, message)
        if not isinstance(fields, dict) or not isinstance(fields.get("role"), str):
            raise InvalidArgumentError(field, message, "a dict with the keys 'role' and 'content'")
        fields = {key: value for key, value in fields.items() if value is not None}
        reasoning = next((fields[key] for key in _REASONING if key in fields), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        read.append(fields)
    if not read:
        raise InvalidArgumentError("messages", messages, expected)
    return read


# The names that templates and servers give to a model's reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def normalize(messages: list[dict[str, Any]], content_format: str) -> list[dict[str, Any]]:
    """What `read_messages` returned, with contents in one form and arguments of tools as dicts.

    Args:
        content_format: "string" or "openai".

    Raises:
        InvalidArgumentError: a content has a part that is not text, or a tool call is malformed.
    """
    normal = []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        texts = _texts(f"{field}.content", message.get("content"))
        as_parts = content_format == "openai" and message["role"] != "tool"
        content = [{"type": "text", "text": text} for text in texts] if as_parts else None
        message = {**message, "content": "\n".join(texts) if content is None else content}
        if message["role"] == "assistant" and "tool_calls" in message:
            calls = _tool_calls(f"{field}.tool_calls", message.pop("tool_calls"))
            message |= {"tool_calls": calls} if calls else {}
        normal.append(message)
    return normal


def _texts(field: str, content: Any) -> list[str]:
    """The texts of a content's parts; empty ones are left out of a list of several."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidArgumentError(field, content, "text, or a list of parts")
    texts = []
    for index, part in enumerate(content):
        where = f"{field}[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise InvalidArgumentError(where, part, "text, or a dict with 'type' and 'text'")
        kind = part.get("type", "text" if "text" in part else None)
        if not isinstance(kind, str) or kind not in _TEXT_PARTS:
            raise InvalidArgumentError(
                f"{where}.type",
                kind,
                f"one of {', '.join(_TEXT_PARTS)}: models here read text alone",
            )
        text = part.get(_TEXT_PARTS[kind])
        if not isinstance(text, str | None):
            raise InvalidArgumentError(f"{where}.{_TEXT_PARTS[kind]}", text, "text")
        texts.append(text or "")
    return [text for text in texts if text]


def _tool_calls(field: str, calls: Any) -> list[Any]:
    if not isinstance(calls, list):
        raise InvalidArgumentError(field, calls, "a list of tool calls")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise InvalidArgumentError(
                f"{field}[{index}]", call, "a dict with 'type': 'function' and a 'function' dict"
            )
        function["arguments"] = _arguments(f"{field}[{index}]", function.get("arguments"))
    return calls


def _arguments(field: str, arguments: Any) -> dict[str, Any]:
    """The arguments of a call as a dict; a model's own malformed ones become an empty one."""
    if not arguments:
        return {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments, field)
        except InvalidArgumentError:
            arguments = None
    if not isinstance(arguments, dict):
        _log.warning("%s: the arguments are not a JSON object; the template gets none", field)
        return {}
    return arguments


def detect_format(syntax: nodes.Template) -> str:
    """Which form of contents a parsed template expects: "openai" where it goes through parts."""
    from jinja2 import nodes

    contents: set[str] = set()  # variables and macro parameters that hold a content

    def is_content(node: Any) -> bool:
        if isinstance(node, nodes.Filter | nodes.Test) and node.node is not None:
            return is_content(node.node)
        if isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Const):
                return bool(node.arg.value == "content")
            return isinstance(node.arg, nodes.Slice) and is_content(node.node)
        if isinstance(node, nodes.Getattr):
            return node.attr == "content"
        return isinstance(node, nodes.Name) and node.name in contents

    macros = {macro.name: macro for macro in syntax.find_all(nodes.Macro)}
    size = -1
    while size < len(contents):
        size = len(contents)
        for assignment in syntax.find_all(nodes.Assign):
            if isinstance(assignment.target, nodes.Name) and is_content(assignment.node):
                contents.add(assignment.target.name)
        for call in syntax.find_all(nodes.Call):
            macro = macros.get(getattr(call.node, "name", ""))
            if macro is not None:
                pairs = zip(call.args, macro.args, strict=False)
                contents |= {name.name for value, name in pairs if is_content(value)}
    loops = syntax.find_all(nodes.For)
    return "openai" if any(is_content(loop.iter) for loop in loops) else "string"
