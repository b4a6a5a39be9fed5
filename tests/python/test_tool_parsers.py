"""Tool calls and reasoning are read the same, however the output is divided into pieces."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_formats import (
    AROUND_REASONING,
    WRITERS,
    Call,
    Output,
    assembled,
    joined,
    parse,
    tool,
)

from forerun.text.tool_parsers import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ContentDelta,
    ToolCallStart,
)

# Texts that formats give a meaning to, whole and in part, and others.
FRAGMENTS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "\n",
            "\n\n",
            " ",
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"',
            "\\",
        ),
        *('{"name": "f", "arguments": {"a": "x"}}', '{"name": "f", "parameters": {}}', "; "),
        *('{"arguments": {"b": [1, "]"]}, "name": "g"}', '{"name": ', '"arguments": ', "null"),
        *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "f", "<|python_tag|>", "[THINK]", "[/THINK]"),
        *("<|tool_call>", "<tool_call|>", "call:f", "call:f{", "a:", '<|"|>', "<|channel>thought"),
        *("<channel|>", "<start_function_call>", "<end_function_call>", "<escape>", "True"),
        *("<function=f>", "</function>", "<parameter=a>", "<parameter=n>", "</parameter>"),
        *(
            "[f(a=1, n='x')]",
            "[f(",
            "a=",
            "'",
            ")",
            "<think>",
            "</think>",
            "<",
            "<|",
            "</",
            "tool",
            "_call>",
            "é",
            "🙂",
            "\u2028",
            "\\",
            "1",
        ),
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=25).map("".join)
TOOLS = [tool("f", {"a": {"type": "string"}, "n": {"type": "integer"}})]


def divided(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
@settings(max_examples=50, deadline=None)
@given(
    text=TEXTS,
    reasoning_format=st.sampled_from([None, *REASONING_FORMATS]),
    starts=st.booleans(),
    cuts=st.lists(st.integers(0, 10**6), max_size=12),
)
def test_any_division_of_any_text_gives_the_same_events(
    tools_format: str, text: str, reasoning_format: str | None, starts: bool, cuts: list[int]
) -> None:
    wholes = joined(
        parse([text], tools_format, reasoning_format, starts_in_reasoning=starts, tools=TOOLS)
    )
    for pieces in (list(text), divided(text, cuts)):
        events = parse(
            pieces, tools_format, reasoning_format, starts_in_reasoning=starts, tools=TOOLS
        )
        assert joined(events) == wholes


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_a_text_without_a_call_is_content_as_it_is(tools_format: str, text: str) -> None:
    events = parse(list(text), tools_format)
    if not any(isinstance(event, ToolCallStart) for event in events) and "[]" not in text:
        assert joined(events) == ([(ContentDelta, 0, text)] if text else [])


KEYS = st.text(alphabet="abcxyz_", min_size=1, max_size=5)
SCALARS = st.integers(-(10**9), 10**9) | st.booleans() | st.none() | st.floats(-1e6, 1e6)
STRINGS = st.text(alphabet=st.sampled_from('ab{}[],:"\\\n é🙂<>/'), max_size=12)
VALUES = st.recursive(
    SCALARS | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.builds(
    Call, st.sampled_from(["f", "get_weather", "a-b.c"]), st.dictionaries(KEYS, VALUES, max_size=3)
)
WORDS = st.text(alphabet="ab c,é🙂", min_size=1, max_size=20).map(str.strip)


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_templates_write_is_read_back(writer: str, data: st.DataObject) -> None:
    tools_format = writer.split("/")[0]
    calls = data.draw(st.lists(CALLS, max_size=3, unique_by=lambda call: call.name))
    content = data.draw(WORDS | st.just(""))
    if tools_format in ("llama3_json", "pythonic") and calls:
        content = ""  # the template has no content beside calls
    reasoning_format = data.draw(st.sampled_from(REASONING_FORMATS))
    reasoning = data.draw(WORDS | st.just(""))
    opening, closing = AROUND_REASONING[reasoning_format]
    output = content + ("\n" if content and calls else "") + WRITERS[writer](calls)
    pieces = list(f"{opening}{reasoning}{closing}{output}")
    tools = [
        tool(call.name, {key: _schema(value) for key, value in call.arguments.items()})
        for call in calls
    ]
    read = assembled(parse(pieces, tools_format, reasoning_format, tools=tools))
    assert read == Output(reasoning, content, calls)
    inside = divided(f"{reasoning}{closing}{output}", data.draw(st.lists(st.integers(0, 10**6))))
    events = parse(inside, tools_format, reasoning_format, starts_in_reasoning=True, tools=tools)
    assert assembled(events) == read


def _schema(value: Any) -> dict[str, Any]:
    return {"type": "string"} if isinstance(value, str) else {"not": {"type": "string"}}
