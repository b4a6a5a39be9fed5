"""Writes outputs in the formats of tool calls and reasoning, as chat templates do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from forerun.text.tool_parsers import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    make_parser,
)


class Call(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]


class Output(NamedTuple):
    """What an output consists of, its parts joined."""

    reasoning: str
    content: str
    calls: list[Call]


def tool(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """A function with parameters of these schemas, all of them required."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _hermes(calls: list[Call]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )


def _smollm(calls: list[Call]) -> str:
    listed = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return f"<tool_call>{json.dumps(listed)}</tool_call>" if calls else ""


def _llama(calls: list[Call]) -> str:
    return "; ".join(json.dumps({"name": name, "parameters": args}) for name, args in calls)


def _mistral(calls: list[Call]) -> str:
    listed = [{"name": name, "arguments": args, "id": "abcdefghi"} for name, args in calls]
    return f"[TOOL_CALLS] {json.dumps(listed)}" if calls else ""


def _mistral_names(calls: list[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(args)}" for name, args in calls)


def _gemma_value(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        pairs = (f"{key}:{_gemma_value(each, quote)}" for key, each in sorted(value.items()))
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{','.join(_gemma_value(each, quote) for each in value)}]"
    return json.dumps(value)


def _gemma(opening: str, closing: str, quote: str) -> Callable[[list[Call]], str]:
    return lambda calls: "".join(
        f"{opening}call:{name}{_gemma_value(args, quote)}{closing}" for name, args in calls
    )


def _qwen_coder(calls: list[Call]) -> str:
    blocks = []
    for name, arguments in calls:
        parameters = "".join(
            f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n"
            "</parameter>\n"
            for key, value in arguments.items()
        )
        blocks.append(f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>")
    return "\n".join(blocks)


def _pythonic(calls: list[Call]) -> str:
    written = [
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    ]
    return f"[{', '.join(written)}]" if calls else ""


def _pythonic_json(calls: list[Call]) -> str:
    """As templates do, whose JSON has all characters as they are."""
    written = []
    for name, arguments in calls:
        pairs = (f"{key}={json.dumps(v, ensure_ascii=False)}" for key, v in arguments.items())
        written.append(f"{name}({', '.join(pairs)})")
    return f"[{', '.join(written)}]" if calls else ""


# By the name of a format, "/" and its variant.
WRITERS: dict[str, Callable[[list[Call]], str]] = {
    "hermes": _hermes,
    "smollm": _smollm,
    "llama3_json": _llama,
    "mistral": _mistral,
    "mistral/names": _mistral_names,
    "gemma4": _gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "qwen3_coder": _qwen_coder,
    "pythonic": _pythonic,
    "pythonic/json": _pythonic_json,
}
# What templates write before and after reasoning.
AROUND_REASONING = {
    "qwen3": ("<think>\n", "\n</think>\n\n"),
    "deepseek_r1": ("<think>\n", "\n</think>\n\n"),
    "gemma4": ("<|channel>thought\n", "\n<channel|>"),
    "mistral": ("[THINK]", "[/THINK]"),
}


def parse(
    pieces: Iterable[str],
    tools_format: str | None,
    reasoning_format: str | None = None,
    *,
    starts_in_reasoning: bool = False,
    tools: Iterable[Any] = (),
) -> list[Event]:
    """The events of an output that arrives in pieces."""
    parser = make_parser(
        tools_format,
        reasoning_format,
        starts_in_reasoning=starts_in_reasoning,
        tools=list(tools),
    )
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish()


def joined(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Events without ids, and with deltas of the same thing joined."""
    parts: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, ToolCallStart):
            parts.append(("call", event.index, event.name))
            continue
        index = event.index if isinstance(event, ToolCallArguments) else 0
        if parts and parts[-1][:2] == (type(event), index):
            parts[-1] = (*parts[-1][:2], parts[-1][2] + event.text)
        else:
            parts.append((type(event), index, event.text))
    return parts


def assembled(events: Iterable[Event]) -> Output:
    """What a client makes of the events."""
    texts = {ReasoningDelta: "", ContentDelta: ""}
    names: list[str] = []
    arguments: list[str] = []
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == len(names)
            names.append(event.name)
            arguments.append("")
        elif isinstance(event, ToolCallArguments):
            arguments[event.index] += event.text
        else:
            texts[type(event)] += event.text
    calls = [Call(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]
    return Output(texts[ReasoningDelta], texts[ContentDelta], calls)
