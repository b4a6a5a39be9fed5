"""Tool calls that an engine generates are the same with and without speculation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from output_formats import assembled, joined, tool

from forerun import LLM, SamplingParams
from forerun.text.tool_parsers import Event, make_parser, special_markers, tool_grammar

METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 1},
    "suffix": {"method": "suffix", "adaptive": False},
    "grammar": {"method": "grammar", "adaptive": False},
}
PARAMETERS = {
    "city": {"type": "string", "enum": ["Rome", "Oslo"]},
    "days": {"type": "integer", "minimum": 1, "maximum": 9},
    "units": {"type": "array", "items": {"enum": ["celsius", "kelvin"]}, "maxItems": 2},
}
TOOLS = [tool("get_weather", PARAMETERS), tool("get_time", {"zone": {"enum": ["UTC", "CET"]}})]
SCHEMAS = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}


@pytest.fixture(scope="module")
def llms(tiny_dir: Path) -> dict[str, LLM]:
    return {
        name: LLM(tiny_dir, speculative_config=config, max_num_seqs=4, check_invariants=True)
        for name, config in METHODS.items()
    }


def generate(
    llm: LLM, tools_format: str, params: SamplingParams
) -> tuple[list[list[Event]], list[str | None], int]:
    """The events and finish reasons of some prompts, and the most tokens that a delta brought."""
    prompts = ["hello", "What is the weather?", "abc abc abc"]
    parsers = [
        make_parser(tools_format, None, starts_in_reasoning=False, tools=TOOLS) for _ in prompts
    ]
    events: list[list[Event]] = [[] for _ in prompts]
    reasons: list[str | None] = [None] * len(prompts)
    most_tokens = 0
    with llm.stream(prompts, params) as stream:
        for delta in stream:
            events[delta.index] += parsers[delta.index].push(delta.text)
            reasons[delta.index] = delta.finish_reason
            most_tokens = max(most_tokens, len(delta.token_ids))
    for parser, each in zip(parsers, events, strict=True):
        each += parser.finish()
    return events, reasons, most_tokens


# sgl-project/sglang 21723: a grammar that ends within the tokens of a step ends the output there.
@pytest.mark.parametrize(
    "tools_format", ["hermes", "llama3_json", "gemma4", "qwen3_coder", "pythonic"]
)
def test_required_calls_are_whole_and_the_same_with_every_method(
    llms: dict[str, LLM], tools_format: str
) -> None:
    special = special_markers(llms["none"].get_tokenizer(), tools_format, None)
    params = SamplingParams(
        max_tokens=200,
        temperature=0.8,
        seed=3,
        skip_special_tokens=not special,
        structured_outputs=tool_grammar(
            tools_format,
            TOOLS,
            "required",
            parallel_tool_calls=False,
            special_tokens=special,
        ),
    )
    plain, reasons, _ = generate(llms["none"], tools_format, params)
    assert reasons == ["stop"] * len(plain)
    for events in plain:
        output = assembled(events)
        assert output.content == ""
        [call] = output.calls
        jsonschema.validate(call.arguments, SCHEMAS[call.name])
    several = 0
    for method in METHODS.keys() - {"none"}:
        drafted, drafted_reasons, most_tokens = generate(llms[method], tools_format, params)
        assert [joined(each) for each in drafted] == [joined(each) for each in plain]
        assert drafted_reasons == reasons
        several = max(several, most_tokens)
    assert several > 3
