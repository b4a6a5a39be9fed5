"""Tool calls and reasoning in the text that models generate."""

from forerun.text.tool_parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
)
from forerun.text.tool_parsers.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    detect_formats,
    make_parser,
    special_markers,
    starts_in_reasoning,
)
from forerun.text.tool_parsers.grammar import (
    after_reasoning,
    constrains_calls,
    demands_calls,
    tool_grammar,
)
from forerun.text.tool_parsers.parser import Parser

__all__ = [
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "ContentDelta",
    "Event",
    "Parser",
    "ReasoningDelta",
    "ToolCallArguments",
    "ToolCallStart",
    "after_reasoning",
    "constrains_calls",
    "demands_calls",
    "detect_formats",
    "make_parser",
    "special_markers",
    "starts_in_reasoning",
    "tool_grammar",
]
