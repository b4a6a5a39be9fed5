"""Grammars for tool calls: what they allow, the parser reads as calls that the tools accept."""

from __future__ import annotations

import ctypes
import functools
import json
import random
from typing import Any

import jsonschema
import pytest
from output_formats import WRITERS, Call, assembled, parse, tool
from random_schemas import random_schema

from forerun import InvalidArgumentError, StructuredOutputsParams
from forerun.text.grammar_compiler import GrammarCompiler, GrammarTokenizer
from forerun.text.tool_parsers import TOOL_FORMATS, after_reasoning, tool_grammar

SPECIAL = ["[TOOL_CALLS]", "[ARGS]", "<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>"]
OTHERS = ["<tool_call>", "</tool_call>", "</think>", "<think>", "</parameter>", "</function>"]
BYTES = [bytes([byte]) for byte in range(256)]
EOS = len(BYTES)
VOCABULARY = [*BYTES, b"<end>", *(text.encode() for text in SPECIAL + OTHERS)]
SPECIAL_IDS = {text: EOS + 1 + index for index, text in enumerate(SPECIAL)}
PLAIN = {*b'ab01-.{}[]",:<>\n ', *range(EOS + 1, len(VOCABULARY))}
CLOSING = {*b'"}]<\n', SPECIAL_IDS['<|"|>'], SPECIAL_IDS["<tool_call|>"]}


@functools.cache
def compiler() -> GrammarCompiler:
    tokenizer = GrammarTokenizer(
        VOCABULARY, [*SPECIAL_IDS.values()], [EOS], lambda text: list(text.encode())
    )
    return GrammarCompiler(tokenizer)


def walk(params: StructuredOutputsParams, rng: random.Random) -> tuple[str, bool]:
    """A random text of a grammar, and whether it is complete."""
    state = compiler().compile(params)()
    mask = ctypes.create_string_buffer((len(VOCABULARY) + 31) // 32 * 4)
    output = b""
    for _ in range(500):
        state.fill_mask(ctypes.addressof(mask), len(mask))
        allowed = [i for i in range(len(VOCABULARY)) if mask.raw[i // 8] >> i % 8 & 1]
        assert allowed
        if EOS in allowed and (len(allowed) == 1 or rng.random() < 0.3):
            return output.decode(errors="replace"), True
        choice = [i for i in allowed if i != EOS]
        plain = [i for i in choice if i in PLAIN]
        closing = [i for i in choice if i in CLOSING] if rng.random() < 0.3 else []
        token = rng.choice(closing or plain or choice)
        assert state.advance([token]) == 1
        output += VOCABULARY[token]
    return output.decode(errors="replace"), False


def relaxed(schema: Any) -> Any:
    """A schema without the limits of strings, which Gemma's and Qwen's notations do not apply."""
    if isinstance(schema, list):
        return [relaxed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = ("pattern", "minLength", "maxLength")
    return {key: relaxed(value) for key, value in schema.items() if key not in dropped}


def with_identifiers(schema: Any) -> Any:
    """A schema whose properties have names without spaces."""
    return json.loads(json.dumps(schema).replace("unit price", "unit_price"))


def tools_and_schemas(
    rng: random.Random, tools_format: str, *, is_strict: bool
) -> tuple[list[Any], dict[str, Any]]:
    schemas = {name: random_schema(rng, depth=2) for name in ("f", "get_weather")}
    if tools_format in ("gemma4", "functiongemma", "qwen3_coder"):
        schemas = relaxed(schemas)
    if tools_format == "pythonic":  # which has no other names
        schemas = {name: with_identifiers(schema) for name, schema in schemas.items()}
    functions: list[dict[str, Any]] = [
        {"name": name, "parameters": schema} for name, schema in schemas.items()
    ]
    functions.append({"name": "none"})
    tools = [{"type": "function", "function": {**f, "strict": is_strict}} for f in functions]
    return tools, {**schemas, "none": {"maxProperties": 0}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


CASES: list[tuple[Any, bool]] = [
    ("required", True),
    ("required", False),
    (named("f"), True),
    ("auto", True),
]


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
@pytest.mark.parametrize("has_special", [False, True])
def test_every_allowed_text_is_read_as_calls_that_tools_accept(
    tools_format: str, has_special: bool
) -> None:
    rng = random.Random(f"{tools_format} {has_special}")
    num_complete = num_calls = 0
    for choice, is_parallel in CASES * 2:
        tools, schemas = tools_and_schemas(rng, tools_format, is_strict=choice == "auto")
        starts = rng.random() < 0.5
        reasoning = "qwen3" if starts else None
        params = tool_grammar(
            tools_format,
            tools,
            choice,
            parallel_tool_calls=is_parallel,
            reasoning_format=reasoning,
            starts_in_reasoning=starts,
            special_tokens=SPECIAL_IDS if has_special else {},
        )
        assert params is not None
        text, is_complete = walk(params, rng)
        if not is_complete:
            continue
        events = parse(list(text), tools_format, reasoning, starts_in_reasoning=starts, tools=tools)
        output = assembled(events)
        num_complete += 1
        num_calls += len(output.calls)
        for call in output.calls:
            jsonschema.validate(call.arguments, schemas[call.name])
        if choice != "auto":
            assert output.content == ""
            assert len(output.calls) >= 1
            assert is_parallel or len(output.calls) == 1
        if choice == named("f"):
            assert [call.name for call in output.calls] == ["f"]
    assert num_complete >= len(CASES)
    assert num_calls >= 3


def allows(params: StructuredOutputsParams | None, text: str) -> bool:
    """Whether a grammar allows a text, whole."""
    assert params is not None
    state = compiler().compile(params)()
    tokens = [*text.encode(), EOS]
    return state.advance(tokens) == len(tokens)


CITY = tool("weather", {"city": {"type": "string", "enum": ["Rome", "Oslo"]}})
STRICT = {**CITY, "function": {**CITY["function"], "strict": True}}
FREE = tool("search", {"query": {"type": "string"}})


def test_text_is_free_until_a_strict_tool_is_called() -> None:
    params = tool_grammar("hermes", [STRICT, FREE], "auto")
    for text in ("", "Hello.\n", "a < b, </tool_call> and <tool_cal"):
        assert allows(params, text)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
    assert allows(params, "Let me see.\n" + call % "Rome" + "\n" + call % "Oslo" + " Done.")
    assert not allows(params, call % "Paris")
    other = '<tool_call>\n{"name": "search", "arguments": {"anything": [1]}}\n</tool_call>'
    assert allows(params, other)
    assert not allows(params, other.replace("search", "unknown"))
    assert not allows(params, "<tool_call>")


def test_an_output_that_begins_like_a_call_of_llama_is_one() -> None:
    params = tool_grammar("llama3_json", [STRICT], "auto")
    assert allows(params, 'The JSON is {"a": 1}')
    assert allows(params, '{"name": "weather", "parameters": {"city": "Rome"}}')
    assert not allows(params, '{"name": "weather", "parameters": {"city": "Paris"}}')


def test_reasoning_before_calls_is_free() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    inside = tool_grammar(
        "hermes", [CITY], "required", reasoning_format="qwen3", starts_in_reasoning=True
    )
    assert allows(inside, f"I use <tool_call>.\n</think>\n\n{call}")
    assert not allows(inside, call)
    before = tool_grammar("hermes", [CITY], "required", reasoning_format="qwen3")
    assert allows(before, f"<think>\nhm\n</think>\n\n{call}")
    assert allows(before, call)


# vllm-project/vllm 48228: the first token of an answer in the step that ends the reasoning.
@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({"json": {"type": "object", "maxProperties": 0}}, "{}", "{{}"),
        ({"json": True, "disable_any_whitespace": True}, '{"a":[1]}', '{"a": [1]}'),
        ({"json_object": True, "whitespace_pattern": "[ ]{1,2}"}, '{"a": 1}', '{"a":\n1}'),
        ({"regex": "a/b\\/c\n|d"}, "a/b/c\n", "a/b"),
        ({"choice": ["yes", "no/"]}, "no/", "maybe"),
        ({"grammar": 'start: "a" start "b" | "c"'}, "aacbb", "aacb"),
        ({"grammar": 'root ::= "a" root "b" | "c"'}, "acb", "ab"),
    ],
)
def test_answers_of_every_kind_are_constrained_after_free_reasoning(
    fields: Any, right: str, wrong: str
) -> None:
    structure = StructuredOutputsParams(**fields)
    inside = after_reasoning(structure, "qwen3", starts_in_reasoning=True)
    assert allows(inside, f"I say {wrong}.\n</think>\n\n{right}")
    assert not allows(inside, f"Hm.\n</think>\n\n{wrong}")
    assert not allows(inside, right)
    before = after_reasoning(structure, "gemma4", starts_in_reasoning=False)
    assert allows(before, f"<|channel>thought\nHm.\n<channel|>{right}")
    assert allows(before, right)
    assert not allows(before, wrong)


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
@pytest.mark.parametrize("tools", [[STRICT, FREE], [CITY, FREE]], ids=["strict", "free"])
def test_with_a_constraint_on_the_answer_the_output_is_calls_or_the_answer(
    tools_format: str, tools: list[Any]
) -> None:
    answer = StructuredOutputsParams(json={"properties": {"x": {"const": 7}}, "required": ["x"]})
    params = tool_grammar(tools_format, tools, "auto", answer=answer)
    writer = WRITERS["pythonic/json" if tools_format == "pythonic" else tools_format]

    def write(*calls: Call) -> str:
        return writer(list(calls)).replace(', "id": "abcdefghi"', "")

    rome, paris = (Call("weather", {"city": city}) for city in ("Rome", "Paris"))
    assert allows(params, write(rome))
    assert allows(params, write(rome, Call("search", {"query": "x", "more": 1})))
    assert allows(params, write(paris)) == (tools[0] is CITY)
    assert allows(params, '{"x": 7}')
    for text in ("", "Hello.", '{"x": 8}', f"Hm. {write(rome)}", '{"x": 7}' + write(rome)):
        assert not allows(params, text)
    thinking = tool_grammar(
        tools_format,
        tools,
        "auto",
        answer=answer,
        reasoning_format="qwen3",
        starts_in_reasoning=True,
    )
    assert allows(thinking, f"Hm.\n</think>\n\n{write(rome)}")
    assert allows(thinking, 'Hm.\n</think>\n\n{"x": 7}')
    assert not allows(thinking, "Hm.\n</think>\n\nHello.")
    demanded = tool_grammar(tools_format, tools, "required", answer=answer)
    assert allows(demanded, write(rome))
    assert not allows(demanded, '{"x": 7}')


def test_an_answer_in_json_may_begin_like_a_call_of_llama() -> None:
    answer = StructuredOutputsParams(json_object=True)
    params = tool_grammar("llama3_json", [STRICT], "auto", answer=answer)
    for text in ('{"name": "Ada"}', '{"name": "weather", "x": 5}', '{ "name" :5}', '{"namen": []}'):
        assert allows(params, text)
    assert allows(params, '{"name": "weather", "parameters": {"city": "Rome"}}')
    assert not allows(params, "[]")


@pytest.mark.parametrize("tools_format", ["hermes", "mistral", "gemma4", "llama3_json", "pythonic"])
def test_without_parallel_calls_a_free_text_has_at_most_one(tools_format: str) -> None:
    params = tool_grammar(tools_format, [FREE], "auto", parallel_tool_calls=False)
    writer = "pythonic/json" if tools_format == "pythonic" else tools_format
    call = WRITERS[writer]([Call("search", {"query": "x", "more": 1})])
    call = call.replace(', "id": "abcdefghi"', "")  # only templates write it
    assert allows(params, "Hello.")
    assert allows(params, call)
    assert not allows(params, f"{call}; {call}")
    assert not allows(params, call + call)


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_a_named_function_is_called_exactly_once(tools_format: str, is_parallel: bool) -> None:
    def grammar(choice: Any) -> StructuredOutputsParams | None:
        return tool_grammar(tools_format, [FREE], choice, parallel_tool_calls=is_parallel)

    writer = "pythonic/json" if tools_format == "pythonic" else tools_format
    once, twice = (
        WRITERS[writer]([Call("search", {"query": "x"})] * num_calls).replace(
            ', "id": "abcdefghi"', ""
        )
        for num_calls in (1, 2)
    )
    assert allows(grammar(named("search")), once)
    assert not allows(grammar(named("search")), twice)
    assert allows(grammar("required"), twice) == is_parallel


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_called(tools_format: str, mode: str) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    params = tool_grammar(
        tools_format, [other, FREE, CITY], allowed(mode, "search", "weather", "search")
    )
    writer = "pythonic/json" if tools_format == "pythonic" else tools_format

    def write(*calls: Call) -> str:
        return WRITERS[writer](list(calls)).replace(', "id": "abcdefghi"', "")

    search, weather = Call("search", {"query": "x"}), Call("weather", {"city": "Rome"})
    assert allows(params, write(search))
    assert allows(params, write(weather, search))
    assert not allows(params, write(Call("other", {})))
    assert not allows(params, write(search, Call("other", {})))
    assert allows(params, "Hello.") == (mode == "auto")


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
def test_true_and_false_are_schemas_of_parameters(tools_format: str) -> None:
    function = {"name": "f", "parameters": {"properties": {"a": True, "b": False}}}
    params = tool_grammar(tools_format, [{"type": "function", "function": function}], "required")
    writer = "pythonic/json" if tools_format == "pythonic" else tools_format
    write = WRITERS[writer]
    for value in ("x", 5, [True, None]):
        call = write([Call("f", {"a": value})]).replace(', "id": "abcdefghi"', "")
        assert allows(params, call)
    wrong = write([Call("f", {"b": "x"})]).replace(', "id": "abcdefghi"', "")
    assert not allows(params, wrong)


def test_an_alternative_that_nothing_satisfies_is_left_out() -> None:
    schema = {"properties": {"a": {"anyOf": [False, {"type": "integer"}]}}}
    function = {"name": "f", "parameters": schema}
    params = tool_grammar("gemma4", [{"type": "function", "function": function}], "required")
    assert allows(params, WRITERS["gemma4"]([Call("f", {"a": 5})]))
    assert not allows(params, WRITERS["gemma4"]([Call("f", {"a": "x"})]))


def test_nothing_is_constrained_unless_it_is_asked_for() -> None:
    assert tool_grammar("hermes", [CITY], "auto") is None
    assert tool_grammar("hermes", [STRICT], "none") is None
    assert tool_grammar("hermes", [], "required") is None


@pytest.mark.parametrize("tools_format", TOOL_FORMATS)
@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        ([CITY], "always", "tool_choice"),
        ([CITY], {"type": "function"}, "tool_choice"),
        ([CITY], named("time"), "tool_choice"),
        ([CITY], allowed("auto", "weather", "time"), "tool_choice"),
        ([CITY], allowed("required"), "tool_choice"),
        ([CITY], allowed("none", "weather"), "tool_choice"),
        ([CITY], {"type": "allowed_tools"}, "tool_choice"),
        ([5], "required", "tools[0]"),
        ([CITY, {"type": "function", "function": {}}], "required", "tools[1]"),
        ([named("a b")], "required", "tools"),
        *(
            (
                [CITY, {"type": "function", "function": {"name": "f", "parameters": schema}}],
                "required",
                "tools[1].function.parameters",
            )
            for schema in (
                [],
                {"type": "array"},
                {"properties": 5},
                {"properties": {"a": {"const": float("nan")}}},
                {"properties": {"a": {"const": object()}}},
                {"required": "a"},
                {"properties": {"a": {"type": "array", "minItems": "x"}}},
                {"properties": {"a": {"$ref": "#/$defs/missing"}}},
            )
        ),
    ],
)
def test_what_is_wrong_with_tools_or_the_choice_is_named(
    tools_format: str, tools: Any, choice: Any, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        tool_grammar(tools_format, tools, choice)
    assert caught.value.field == field


def test_a_wrong_structure_after_reasoning_is_named() -> None:
    structure = StructuredOutputsParams(json={}, whitespace_pattern="(")
    with pytest.raises(InvalidArgumentError) as caught:
        after_reasoning(structure, "qwen3", starts_in_reasoning=True)
    assert caught.value.field == "structured_outputs.whitespace_pattern"
    with pytest.raises(InvalidArgumentError) as caught:
        tool_grammar("hermes", [CITY], "auto", answer=structure)
    assert caught.value.field == "structured_outputs.whitespace_pattern"
