"""What a model's output consists of: text, reasoning, and calls of tools."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ContentDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the text in which the model reasons before it answers."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A tool call begins.

    Attributes:
        index: its index among the calls of this output, from 0.
        id: a new, random name for it, in the form that the model's chat template accepts.
        name: the function's name.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Event = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments
