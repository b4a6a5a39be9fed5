"""The formats of tool calls and reasoning, by vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from forerun.text.tokenizer import Tokenizer
from forerun.text.tool_parsers.events import (
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCallStart,
)
from forerun.text.tool_parsers.json_calls import HermesParser, LlamaParser, MistralParser
from forerun.text.tool_parsers.parser import Parser, StepParser
from forerun.text.tool_parsers.reader import Step
from forerun.text.tool_parsers.reasoning import ReasoningParser
from forerun.text.tool_parsers.tagged_calls import GemmaParser, PythonicParser, QwenCoderParser
from forerun.util.checks import check_choice


class ToolFormat(NamedTuple):
    """How a model writes tool calls.

    Attributes:
        make: makes a parser for a request with these tools.
        markers: the texts around calls. A tokenizer may have special tokens for them.
        signs: what a chat template contains whose model writes this format.
    """

    make: Callable[[Sequence[Any]], Parser]
    markers: tuple[str, ...]
    signs: tuple[str, ...]


class ReasoningFormat(NamedTuple):
    """How a model marks reasoning.

    Attributes:
        is_special: the opening marker is a special token.
        signs: what a chat template contains whose model writes this format.
    """

    opening: str
    closing: str
    is_special: bool
    signs: tuple[str, ...]


_GEMMA4 = ("<|tool_call>", "<tool_call|>", '<|"|>')
_FUNCTIONGEMMA = ("<start_function_call>", "<end_function_call>", "<escape>")
_HERMES = ("<tool_call>", "</tool_call>")

# In this order a template is searched for the signs.
TOOLS = {
    "gemma4": ToolFormat(lambda _: GemmaParser(*_GEMMA4), _GEMMA4, ("<|tool_call>",)),
    "functiongemma": ToolFormat(
        lambda _: GemmaParser(*_FUNCTIONGEMMA), _FUNCTIONGEMMA, ("<start_function_call>",)
    ),
    "mistral": ToolFormat(
        lambda _: MistralParser(), ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), ("[TOOL_CALLS]",)
    ),
    "qwen3_coder": ToolFormat(QwenCoderParser, _HERMES, ("<function=", "<parameter=")),
    "hermes": ToolFormat(lambda _: HermesParser(), _HERMES, ("<tool_call>", '"arguments"')),
    "pythonic": ToolFormat(
        lambda _: PythonicParser(), ("<|python_tag|>",), ("func_name1(params_name1",)
    ),
    "llama3_json": ToolFormat(
        lambda _: LlamaParser(), ("<|python_tag|>",), ("ipython", '"parameters": ')
    ),
    "smollm": ToolFormat(lambda _: HermesParser(), _HERMES, ("SmolLM",)),
}
REASONING = {
    "gemma4": ReasoningFormat("<|channel>thought", "<channel|>", True, ("<|channel>",)),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]", True, ("[THINK]",)),
    "deepseek_r1": ReasoningFormat(
        "<think>", "</think>", False, ("</think>", "<\uff5cAssistant\uff5c>")
    ),
    "qwen3": ReasoningFormat("<think>", "</think>", False, ("</think>",)),
}
TOOL_FORMATS = tuple(TOOLS)
REASONING_FORMATS = tuple(REASONING)


def detect_formats(chat_template: str) -> tuple[str | None, str | None]:
    """The formats of tool calls and of reasoning that a chat template's model writes."""

    def find(formats: dict[str, Any]) -> str | None:
        return next(
            (
                name
                for name, each in formats.items()
                if all(sign in chat_template for sign in each.signs)
            ),
            None,
        )

    return find(TOOLS), find(REASONING)


def _markers(tools_format: str | None, reasoning_format: str | None) -> tuple[str, ...]:
    """The texts that the parsers look for."""
    found: tuple[str, ...] = ()
    if tools_format is not None:
        found += TOOLS[check_choice("tool_call_parser", tools_format, TOOL_FORMATS)].markers
    if reasoning_format is not None:
        name = check_choice("reasoning_parser", reasoning_format, REASONING_FORMATS)
        reasoning = REASONING[name]
        # A word may follow the token: Gemma's is "<|channel>".
        found += (reasoning.opening.removesuffix("thought"), reasoning.closing)
    return found


def special_markers(
    tokenizer: Tokenizer, tools_format: str | None, reasoning_format: str | None
) -> dict[str, int]:
    """The ids of the formats' markers that are special tokens of a model.

    Where there are any, outputs must be generated with `skip_special_tokens=False`.
    """
    special = set(tokenizer.special_token_ids)
    vocabulary = tokenizer.get_added_vocab()
    return {
        marker: vocabulary[marker]
        for marker in _markers(tools_format, reasoning_format)
        if vocabulary.get(marker) in special
    }


def starts_in_reasoning(reasoning_format: str | None, prompt: str) -> bool:
    """Whether a rendered prompt ends with the marker that opens the reasoning."""
    if reasoning_format is None:
        return False
    name = check_choice("reasoning_parser", reasoning_format, REASONING_FORMATS)
    return prompt.rstrip().endswith(REASONING[name].opening)


def make_parser(
    tools_format: str | None,
    reasoning_format: str | None,
    *,
    starts_in_reasoning: bool,
    tools: Sequence[Any] = (),
    is_calls_alone: bool = False,
) -> Parser:
    """A parser of one output: of its reasoning first, and of the tool calls in the rest.

    Args:
        tools_format: one of TOOL_FORMATS; None leaves calls in the content.
        reasoning_format: one of REASONING_FORMATS; None leaves reasoning in the content.
        starts_in_reasoning: the prompt ends within the reasoning.
        tools: the request's tools, as chat templates get them.
        is_calls_alone: a grammar demands calls. What an output that was cut off has of one whose
            name is not certain is not content then.
    """
    calls: Parser | None = None
    markers: tuple[str, ...] = ()
    if tools_format is not None:
        name = check_choice("tool_call_parser", tools_format, TOOL_FORMATS)
        calls, markers = TOOLS[name].make(tools), TOOLS[name].markers
        if is_calls_alone:
            calls = _WithoutContent(calls)
    if reasoning_format is None:
        return calls or _ContentParser()
    name = check_choice("reasoning_parser", reasoning_format, REASONING_FORMATS)
    opening, closing, is_special, _ = REASONING[name]
    reasoning = ReasoningParser(
        opening,
        closing,
        starts_inside=starts_in_reasoning,
        is_repeated=is_special,
        calls=_HERMES if markers == _HERMES and not is_special else None,
    )
    return reasoning if calls is None else _JoinedParser(reasoning, calls)


class _ContentParser(StepParser):
    """All text is content."""

    def _parse(self) -> Step[None]:
        yield from self._reader.stream_rest(self._content)


class _WithoutContent:
    """A parser whose content is not handed on."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Event]:
        return self._kept(self._parser.push(text))

    def finish(self) -> list[Event]:
        return self._kept(self._parser.finish())

    def _kept(self, events: list[Event]) -> list[Event]:
        return [event for event in events if not isinstance(event, ContentDelta)]


class _JoinedParser:
    """Two parsers, the second of which reads the content that the first one finds.

    It also reads calls with which the output ends within the reasoning; if they prove to be none,
    they are reasoning.
    """

    def __init__(self, first: ReasoningParser, second: Parser) -> None:
        self._first = first
        self._second = second

    def push(self, text: str) -> list[Event]:
        return self._read(self._first.push(text))

    def finish(self) -> list[Event]:
        events = self._read(self._first.finish())
        tail = self._first.tail
        last = (self._second.push(tail) if tail else []) + self._second.finish()
        if tail and not any(isinstance(event, ToolCallStart) for event in last):
            last = [ReasoningDelta(tail)]
        return events + last

    def _read(self, events: list[Event]) -> list[Event]:
        read: list[Event] = []
        for event in events:
            read += self._second.push(event.text) if isinstance(event, ContentDelta) else [event]
        return read
