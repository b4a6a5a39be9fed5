"""Strategies for outputs of chat models: calls, reasoning, and texts full of markup."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st
from output_formats import Call, tool

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
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        "<tool_call>\n<function=f>\n</function>\n</tool_call>",
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


def divided(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


def tools_of(calls: list[Call]) -> list[Any]:
    """Tools whose schemas say which arguments are strings."""
    return [
        tool(call.name, {key: _schema(value) for key, value in call.arguments.items()})
        for call in calls
    ]


def _schema(value: Any) -> dict[str, Any]:
    return {"type": "string"} if isinstance(value, str) else {"not": {"type": "string"}}
