"""Tool calls and reasoning are read the same, however the output is divided into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_formats import (
    AROUND_REASONING,
    WRITERS,
    Output,
    assembled,
    joined,
    parse,
    tool,
)
from output_strategies import CALLS, TEXTS, WORDS, divided, tools_of

from forerun.text.tool_parsers import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ContentDelta,
    ToolCallStart,
)

TOOLS = [tool("f", {"a": {"type": "string"}, "n": {"type": "integer"}})]


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
    tools = tools_of(calls)
    read = assembled(parse(pieces, tools_format, reasoning_format, tools=tools))
    assert read == Output(reasoning, content, calls)
    inside = divided(f"{reasoning}{closing}{output}", data.draw(st.lists(st.integers(0, 10**6))))
    events = parse(inside, tools_format, reasoning_format, starts_in_reasoning=True, tools=tools)
    assert assembled(events) == read
