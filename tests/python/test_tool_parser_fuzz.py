"""Outputs that end early or are damaged, in every format and every division into pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from output_formats import AROUND_REASONING, WRITERS, Call, joined, parse
from output_strategies import CALLS, FRAGMENTS, WORDS, divided, tools_of

from forerun.text.tool_parsers import (
    REASONING_FORMATS,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)

CUTS = st.lists(st.integers(0, 10**6), max_size=12)


class Written(NamedTuple):
    """A whole output as a template writes it, and how to read it."""

    text: str
    reasoning: str
    content: str
    calls: list[Call]
    options: dict[str, Any]
    formats: tuple[str, str]


@st.composite
def outputs(draw: Callable[..., Any], writer: str) -> Written:
    tools_format, reasoning_format = writer.split("/")[0], draw(st.sampled_from(REASONING_FORMATS))
    calls = draw(st.lists(CALLS, max_size=3, unique_by=lambda call: call.name))
    content, reasoning = draw(WORDS | st.just("")), draw(WORDS | st.just(""))
    if tools_format in ("llama3_json", "pythonic") and calls:
        content = ""  # the template has no content beside calls
    opening, closing = AROUND_REASONING[reasoning_format]
    starts = draw(st.booleans())
    text = ("" if starts else opening) + reasoning + closing
    text += content + ("\n" if content and calls else "") + WRITERS[writer](calls)
    options = {"starts_in_reasoning": starts, "tools": tools_of(calls)}
    return Written(text, reasoning, content, calls, options, (tools_format, reasoning_format))


def check_divisions(written: Written, text: str, cuts: list[int]) -> list[Event]:
    """The events, which are the same for every division."""
    events = parse([text], *written.formats, **written.options)
    for pieces in (list(text), divided(text, cuts)):
        assert joined(parse(pieces, *written.formats, **written.options)) == joined(events)
    return events


def check_text(found: str, whole: str, text: str) -> None:
    """Some text of a part that ended early, and at most markup whose meaning was still open."""
    size = 0
    while size < min(len(found), len(whole)) and found[size] == whole[size]:
        size += 1
    assert text.endswith(found[size:])


def check_early_end(writer: str, data: st.DataObject) -> None:
    """What an output that ends early has is the beginning of what the whole one has."""
    written = data.draw(outputs(writer))
    text = written.text[: data.draw(st.integers(0, len(written.text)))]
    events = check_divisions(written, text, data.draw(CUTS))
    texts = {ReasoningDelta: "", ContentDelta: ""}
    names: list[str] = []
    arguments: list[str] = []
    for event in events:
        if isinstance(event, ToolCallStart):
            names.append(event.name)
            arguments.append("")
        elif isinstance(event, ToolCallArguments):
            arguments[event.index] += event.text
        else:
            texts[type(event)] += event.text
    check_text(texts[ReasoningDelta], written.reasoning, text)
    check_text(texts[ContentDelta], written.content, text)
    wholes = parse([written.text], *written.formats, **written.options)
    whole_arguments = [part[2] for part in joined(wholes) if part[0] is ToolCallArguments]
    assert names == [call.name for call in written.calls][: len(names)]
    for index, found in enumerate(arguments):
        if index < len(arguments) - 1:
            assert json.loads(found) == written.calls[index].arguments
        assert whole_arguments[index].startswith(found)


def check_damage(writer: str, data: st.DataObject) -> None:
    """A damaged output is read the same in every division, and calls have one start each."""
    written = data.draw(outputs(writer))
    text = written.text
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = begin + data.draw(st.integers(0, 12))
        text = text[:begin] + data.draw(FRAGMENTS | st.just("")) + text[end:]
    events = check_divisions(written, text, data.draw(CUTS))
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    assert [start.index for start in starts] == list(range(len(starts)))
    assert len({start.id for start in starts}) == len(starts)
    num_started = 0
    for event in events:
        num_started += isinstance(event, ToolCallStart)
        if isinstance(event, ToolCallArguments):
            assert event.index == num_started - 1, "arguments belong to the call that began last"
    if not starts:
        shown = "".join(event.text for event in events if not isinstance(event, ToolCallStart))
        assert len(shown) <= len(text)


# Smaller failing examples are not looked for: that takes minutes.
PHASES = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)]
# The same ones each time: what a random one finds is no fault of the change that ran into it.
few = settings(max_examples=20, deadline=None, phases=PHASES, derandomize=True)
many = settings(max_examples=4000, deadline=None, phases=PHASES)


@pytest.mark.parametrize("writer", WRITERS)
@few
@given(data=st.data())
def test_an_output_that_ends_early_has_the_beginning(writer: str, data: st.DataObject) -> None:
    check_early_end(writer, data)


@pytest.mark.parametrize("writer", WRITERS)
@few
@given(data=st.data())
def test_a_damaged_output_is_read_alike(writer: str, data: st.DataObject) -> None:
    check_damage(writer, data)


@pytest.mark.long
@pytest.mark.parametrize("writer", WRITERS)
@many
@given(data=st.data())
def test_many_outputs_that_end_early(writer: str, data: st.DataObject) -> None:
    check_early_end(writer, data)


@pytest.mark.long
@pytest.mark.parametrize("writer", WRITERS)
@many
@given(data=st.data())
def test_many_damaged_outputs(writer: str, data: st.DataObject) -> None:
    check_damage(writer, data)
