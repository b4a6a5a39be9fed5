"""Outputs that other servers' parsers break when a step brings several tokens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from output_formats import WRITERS, Call, Output, assembled, joined, parse, tool
from tokenizer_files import write_tokenizer
from tokenizers import AddedToken

from forerun import InvalidArgumentError
from forerun.text.detokenizer import Detokenizer, TokenBytes
from forerun.text.tokenizer import Tokenizer
from forerun.text.tool_parsers import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ContentDelta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    detect_formats,
    make_parser,
    special_markers,
    starts_in_reasoning,
)
from forerun.text.tool_parsers.formats import TOOLS


def read(tokens: list[str], *formats: str | None, **options: Any) -> Output:
    """The output, which is the same for every number of tokens a step."""
    outputs = []
    for num_tokens in range(1, len(tokens) + 1):
        steps = ["".join(tokens[i : i + num_tokens]) for i in range(0, len(tokens), num_tokens)]
        outputs.append(joined(parse(steps, *formats, **options)))
    assert all(output == outputs[0] for output in outputs)
    return assembled(parse(tokens, *formats, **options))


WRITE = [tool("Write", {"path": {"type": "string"}, "content": {"type": "string"}})]


# vllm-project/vllm 35800 and 43221.
def test_a_call_right_after_the_reasoning_leaves_both_whole() -> None:
    tokens = [
        *("I", " will", " use", " the", " tool", " Write", ".", "\n", "</think>", "\n\n"),
        *("<tool_call>", "\n", "<", "function", "=", "Write", ">", "\n", "<", "parameter", "="),
        *("path", ">", "\n", "a", ".py", "\n", "</", "parameter", ">", "\n", "<", "parameter"),
        *("=content", ">\n", "x = {", '"', "a", '"', ": 1}", "\n\n", "\n</", "parameter>", "\n"),
        *("</", "function", ">", "\n", "</tool_call>"),
    ]
    output = read(tokens, "qwen3_coder", "qwen3", starts_in_reasoning=True, tools=WRITE)
    call = Call("Write", {"path": "a.py", "content": 'x = {"a": 1}\n\n'})
    assert output == Output("I will use the tool Write.", "", [call])


# vllm-project/vllm 40875.
def test_markup_that_is_no_call_stays_in_the_content() -> None:
    text = "<tool_call>\n<<tool_code>\nprint(1)\n</tool_call>"
    assert read(list(text), "qwen3_coder") == Output("", text, [])
    text = "<tool_call>\nparameter=parameter=name"
    assert read(list(text), "qwen3_coder") == Output("", text, [])


# vllm-project/vllm 41967.
def test_several_calls_in_one_step_keep_all_arguments() -> None:
    quote = '<|"|>'
    tokens = ["Cerco", " i treni"]
    for city in ("Milano", "Piacenza"):
        tokens += ["<|tool_call>", "call", ":", "getStationInfo", "{", "location", ":", quote]
        tokens += [city, quote, "}", "<tool_call|>"]
    calls = [Call("getStationInfo", {"location": city}) for city in ("Milano", "Piacenza")]
    assert read(tokens, "gemma4", "gemma4") == Output("", "Cerco i treni", calls)


# vllm-project/vllm 42781.
def test_the_last_words_of_the_reasoning_are_not_lost() -> None:
    tokens = ["<|channel>", "thought", "\n", "The", " user", " asks", ' ("', 'Tell"', ").", "\n"]
    tokens += ["<channel|>", "Why", " did", " the", " chicken"]
    output = Output('The user asks ("Tell").', "Why did the chicken", [])
    assert read(tokens, None, "gemma4") == output
    assert read(tokens, "gemma4", "gemma4") == output


# vllm-project/vllm 52469.
def test_characters_and_quotes_over_token_borders_are_not_lost() -> None:
    text = 'He said "naïve" — “½ 🙂”.'
    for sizes in itertools.product((1, 2, 3), repeat=3):
        data, pieces = text.encode(), []
        for size in itertools.cycle(sizes):
            pieces.append(data[:size])
            data = data[size:]
            if not data:
                break
        detokenizer = Detokenizer(TokenBytes(pieces, pieces))
        shown = [detokenizer.push([token]) for token in range(len(pieces))]
        assert read([*shown, detokenizer.finish()], "hermes", "qwen3").content == text


# vllm-project/vllm 53638.
def test_a_stray_marker_before_a_call_is_content() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": {}}}\n</tool_call>'
    output = read(list("<tool_call>\nHm, I mean\n" + call), "hermes")
    assert output == Output("", "<tool_call>\nHm, I mean", [Call("f", {"a": {}})])


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CODER_CALL = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
F = [Call("f", {"a": 1})]
A = [tool("f", {"a": {"type": "integer"}})]


# vllm-project/vllm 39056.
@pytest.mark.parametrize(("tools_format", "call"), [("hermes", CALL), ("qwen3_coder", CODER_CALL)])
@pytest.mark.parametrize("end", ["", "\n", "</think>", "\n</think>\n\n"])
def test_a_call_that_ends_an_output_within_its_reasoning_is_a_call(
    tools_format: str, call: str, end: str
) -> None:
    options: dict[str, Any] = {"starts_in_reasoning": True, "tools": A}
    for text in (f"I call f.\n\n{call}{end}", f"<think>\nI call f.\n{call}{end}"):
        assert read(list(text), tools_format, "qwen3", **options) == Output("I call f.", "", F)
    twice = read(list(f"{call}\n{call}{end}"), tools_format, "deepseek_r1", **options)
    assert twice == Output("", "", F * 2)
    tried = read(list(f"Like {call}?\n{call}{end}"), tools_format, "qwen3", **options)
    assert tried == Output(f"Like {call}?", "", F)


@pytest.mark.parametrize(
    "tried", [CALL, f"{CALL}\n{CALL}", "<tool_call>", f"<tool_call> or {CALL}"]
)
def test_a_call_that_the_reasoning_goes_on_after_is_reasoning(tried: str) -> None:
    options: dict[str, Any] = {"starts_in_reasoning": True}
    for end in (
        " No.",
        "\nNo.\n",
        "\n</think>\n\nNo.",
        f" No.</think>{CALL}",
        f"\n</think>\n{CALL}",
    ):
        output = read(list(f"Maybe\n{tried}{end}"), "hermes", "qwen3", **options)
        reasoning, _, content = end.partition("</think>")
        calls = F if CALL in content else []
        reasoning = f"Maybe\n{tried}{reasoning}"
        reasoning = reasoning.removesuffix("\n") if "</think>" in end else reasoning
        assert output == Output(reasoning, "" if calls else content.strip(), calls)


@pytest.mark.parametrize("text", ["<tool_call>", "<tool_call>\nnone\n</tool_call>\n", "a\n<tool_"])
def test_markup_that_ends_an_output_within_its_reasoning_is_reasoning(text: str) -> None:
    for tools_format in ("hermes", "qwen3_coder"):
        output = read(list(f"Hm\n{text}"), tools_format, "qwen3", starts_in_reasoning=True)
        assert output == Output(f"Hm\n{text}", "", [])


def test_reasoning_without_tools_holds_nothing() -> None:
    parser = make_parser(None, "qwen3", starts_in_reasoning=True)
    assert parser.push(f"Hm\n{CALL} so") == [ReasoningDelta(f"Hm\n{CALL} so")]


# sgl-project/sglang 35564 and 37634.
@pytest.mark.parametrize(
    ("tools_format", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n' * 2),
        ("llama3_json", '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}'),
        ("mistral", "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}"),
        ("gemma4", "<|tool_call>call:f{}<tool_call|><|tool_call>call:f{}<tool_call|>"),
        ("qwen3_coder", "<tool_call>\n<function=f>\n</function>\n</tool_call>\n" * 2),
    ],
)
def test_calls_without_arguments_are_calls(tools_format: str, text: str) -> None:
    assert read(list(text), tools_format) == Output("", "", [Call("f", {})] * 2)


def test_text_is_passed_on_as_soon_as_it_cannot_be_markup() -> None:
    parser = make_parser("hermes", "qwen3", starts_in_reasoning=True)
    assert parser.push("Well") == [ReasoningDelta("Well")]
    assert parser.push(" <") == [ReasoningDelta(" ")]
    assert parser.push("b> ") == [ReasoningDelta("<b> ")]
    assert parser.push("</think>\n\nSo") == [ContentDelta("So")]
    assert parser.push(" a < b.\n") == [ContentDelta(" a < b.")]
    assert parser.push("<tool_call>") == []
    [start, arguments] = parser.push('{"name": "f", "arguments": {"a": "lo')
    assert isinstance(start, ToolCallStart)
    assert (start.index, start.name) == (0, "f")
    assert arguments == ToolCallArguments(0, '{"a": "lo')
    assert parser.push('ng"') == [ToolCallArguments(0, 'ng"')]
    assert parser.push("}}</tool_call>") == [ToolCallArguments(0, "}")]
    assert parser.finish() == []


def test_converted_strings_are_passed_on_piece_by_piece() -> None:
    parser = make_parser("gemma4", None, starts_in_reasoning=False)
    [start, arguments] = parser.push('<|tool_call>call:f{a:<|"|>one "t')
    assert isinstance(start, ToolCallStart)
    assert arguments == ToolCallArguments(0, '{"a": "one \\"t')
    assert parser.push("wo") == [ToolCallArguments(0, "wo")]
    parser = make_parser("qwen3_coder", None, starts_in_reasoning=False)
    parser.push("<tool_call>\n<function=f>\n<parameter=a>\none")
    assert parser.push(" two\n") == [ToolCallArguments(0, " two")]


def test_the_beginning_of_a_quote_is_no_value() -> None:
    text = '<|tool_call>call:f{a:[null,<|"|>x<|"|>]}<tool_call|>'
    for size in range(text.index("<|") + 30, len(text)):
        events = parse([text[:size]], "gemma4", None)
        arguments = "".join(e.text for e in events if isinstance(e, ToolCallArguments))
        assert '{"a": [null, "x"]}'.startswith(arguments), text[:size]


def test_an_output_that_ends_early_keeps_what_there_is() -> None:
    for text in ("a\n", "<tool_", '<tool_call>\n{"name": "f', '<tool_call>{"arguments": {}'):
        assert joined(parse(list(text), "hermes")) == [(ContentDelta, 0, text)]
    [_, arguments] = joined(parse('<tool_call>{"name": "f", "arguments": {"a": "x', "hermes"))
    assert arguments == (ToolCallArguments, 0, '{"a": "x')
    for tools_format, text in (
        ("gemma4", "<|tool_call>call:f{a:1,bcd"),
        ("gemma4", '<|tool_call>call:f{a:1,<|"|>b'),
        ("pythonic", "[f(a=1, bcd"),
        ("qwen3_coder", "<function=f><parameter=a>1</parameter><parameter=bcd"),
    ):
        options = {"tools": [tool("f", {"a": {"type": "integer"}})]}
        [_, arguments] = joined(parse(list(text), tools_format, **options))
        assert arguments[2].rstrip(", ") == '{"a": 1', "without the key, which may go on"
    string = [tool("f", {"a": {"type": "string"}})]
    for tools_format, text in (
        ("gemma4", '<|tool_call>call:f{a:<|"|>x<|"'),
        ("qwen3_coder", "<function=f><parameter=a>\nx\n</para"),
        ("qwen3_coder", "<function=f><parameter=a>\nx\n</parameter>\n</func"),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": "x"}}\n</tool'),
        ("gemma4", '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_'),
    ):
        [_, arguments] = joined(parse(list(text), tools_format, tools=string))
        assert '{"a": "x"}'.startswith(arguments[2]), "without markup that was cut"
    for text in ("[f(a={12", "[f(a={'x"):
        [_, arguments] = joined(parse(list(text), "pythonic"))
        assert arguments[2] in ('{"a": {', '{"a": {"x')
    [reasoning] = joined(parse("<think>hm\n", None, "qwen3"))
    assert reasoning == (ReasoningDelta, 0, "hm\n")


@pytest.mark.parametrize("writer", WRITERS)
def test_what_an_early_end_leaves_of_a_further_call_is_no_content(writer: str) -> None:
    tools_format = writer.split("/")[0]
    calls = [Call("f", {"a": 1}), Call("g", {"a": 2})]
    whole = WRITERS[writer](calls)
    num_cut = 0
    for size in range(len(whole)):
        parts = joined(parse([whole[:size]], tools_format, tools=A))
        if not parts or parts[0] != ("call", 0, "f"):
            continue
        num_cut += 1
        content = "".join(text for kind, _, text in parts if kind is ContentDelta)
        # A marker that is not whole may be a part of a text.
        assert TOOLS[tools_format].markers[0].startswith(content), whole[:size]
        assert content != TOOLS[tools_format].markers[0]
    assert num_cut > 10


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("reasoning_format", [None, "qwen3"])
def test_where_calls_are_demanded_an_early_end_leaves_no_content(
    writer: str, reasoning_format: str | None
) -> None:
    tools_format = writer.split("/")[0]
    reasoning = "<think>\nHm\n</think>\n\n" if reasoning_format else ""
    whole = reasoning + WRITERS[writer]([Call("f", {"a": 1}), Call("g", {"a": 2})])
    for size in range(len(whole) + 1):
        parser = make_parser(
            tools_format, reasoning_format, starts_in_reasoning=False, tools=A, is_calls_alone=True
        )
        found = joined([*parser.push(whole[:size]), *parser.finish()])
        expected = joined(parse([whole[:size]], tools_format, reasoning_format, tools=A))
        assert found == [part for part in expected if part[0] is not ContentDelta]
    assert [part[2] for part in found if part[0] == "call"] == ["f", "g"]


def test_text_between_calls_and_after_them_is_content() -> None:
    for text in ("Done.", "a <", "[{", '{"name": "g"}', "<tool_call>\n<x>\n</tool_call>"):
        output = read(list(f"{CALL}\n{text}\n{CALL}\n{text}"), "hermes")
        assert output == Output("", f"{text}{text}", F * 2)


def test_a_string_that_is_not_closed_ends_with_its_call() -> None:
    first = '<tool_call>\n{"name": "f", "arguments": {"a": "x}}\n</tool_call>\n'
    second = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    parts = joined(parse(list(first + second), "hermes"))
    assert parts == [
        ("call", 0, "f"),
        (ToolCallArguments, 0, '{"a": "x}}'),
        ("call", 1, "g"),
        (ToolCallArguments, 1, "{}"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": [1, 2]}',
        '{"name": "Ada", "age": 36}',
        '{"name": "Ada"}',
        '[{"name": "Ada", "born": 1815}]',
        "{not JSON}",
        '{"name": 5, "parameters": {}}',
        "  \n",
    ],
)
def test_json_that_is_no_call_of_llama_is_an_answer(text: str) -> None:
    assert read(list(text), "llama3_json") == Output("", text, [])


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"type": "function", "name": "f", "parameters": {"a": 1}}', {"a": 1}),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', {"a": 1}),
        ('{"parameters": {"a": "}"}, "name": "f"}', {"a": "}"}),
        ('{"name": "f", "arguments": "{\\"a\\": [1]}"}', {"a": [1]}),
    ],
)
def test_variants_of_a_call_are_read(text: str, arguments: dict[str, Any]) -> None:
    assert read(list(text), "llama3_json") == Output("", "", [Call("f", arguments)])


def test_literals_of_python_become_json() -> None:
    written = (
        r"""[f(a=True, b=None, c=('x', 2.5,), d={'k': [1], 2: "q'"}, e='é\n\'\x41\u00e9\d'), g()]"""
    )
    values = {"a": True, "b": None, "c": ["x", 2.5], "d": {"k": [1], "2": "q'"}}
    calls = [Call("f", {**values, "e": "é\n'Aé\\d"}), Call("g", {})]
    assert read(list(written), "pythonic") == Output("", "", calls)


@pytest.mark.parametrize(
    "text", ["[link](https://a.b)", "[1, 2]", "[f(x)]", "[f(a", "[", "f(a=1)", " [x]"]
)
def test_a_list_that_has_no_calls_is_an_answer(text: str) -> None:
    assert read(list(text), "pythonic") == Output("", text, [])


def test_values_have_the_types_of_the_schema() -> None:
    parameters = {
        "s": {"type": "string"},
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "b": {"type": "boolean"},
        "o": {"type": ["string", "null"]},
        "e": {"enum": [1, "two"]},
        "u": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "l": {"$ref": "#/$defs/list"},
    }
    written = {"s": "5", "n": "5", "x": "5", "b": "True", "o": "None", "e": "1", "u": "5"}
    written |= {"l": "[1]", "unknown": "5"}
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in written.items())
    text = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    [call] = read(list(text), "qwen3_coder", tools=[tool("f", parameters)]).calls
    values = {"s": "5", "n": 5, "x": 5, "b": True, "o": None, "e": 1, "u": 5, "l": [1]}
    assert call.arguments == values | {"unknown": "5"}
    [call] = read(
        list(text.replace("5", "many")), "qwen3_coder", tools=[tool("f", parameters)]
    ).calls
    assert call.arguments["n"] == "many"


def test_schemas_that_are_none_are_read_as_far_as_they_go() -> None:
    deep: Any = {"type": "integer"}
    for _ in range(5_000):
        deep = {"anyOf": [deep]}
    parameters = {
        "a": {"type": [{}, "integer"]},
        "b": {"type": [[], {}]},
        "c": {"anyOf": 5},
        "d": {"enum": {}},
        "e": True,
        "f": {"oneOf": [None, {"type": "integer"}]},
        "g": deep,
    }
    body = "".join(f"<parameter={key}>\n5\n</parameter>\n" for key in parameters)
    text = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    [call] = parse([text], "qwen3_coder", tools=[tool("f", parameters)])[1:]
    assert isinstance(call, ToolCallArguments)
    assert json.loads(call.text) == {**dict.fromkeys("acdefg", 5), "b": "5"}


def test_ids_are_of_the_form_that_templates_accept() -> None:
    ids = set()
    for tools_format, text in [
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
        ("mistral", "[TOOL_CALLS]f[ARGS]{}"),
    ]:
        [start, _] = parse([text], tools_format)
        assert isinstance(start, ToolCallStart)
        ids.add(start.id)
        if tools_format == "mistral":
            assert len(start.id) == 9
            assert start.id.isalnum()
    assert len(ids) == 2


# Parts of the chat templates of these models, and the formats.
TEMPLATES = {
    "Qwen3": ('<tool_call>{"name": ..., "arguments": ... </think>', "hermes", "qwen3"),
    "Qwen3.5": ("<tool_call><function=... <parameter=... </think>", "qwen3_coder", "qwen3"),
    "Llama 3.1": ('Environment: ipython ... "parameters": ', "llama3_json", None),
    "Llama 3.2, pythonic": ("ipython ... [func_name1(params_name1=...)]", "pythonic", None),
    "Mistral": ('"[TOOL_CALLS] [" ... "[/TOOL_RESULTS]"', "mistral", None),
    "Magistral": ('"[THINK]" ... "[/THINK]" ... "[TOOL_CALLS]"', "mistral", "mistral"),
    "Gemma 4": ("<|tool_call>call: ... <|channel>thought", "gemma4", "gemma4"),
    "FunctionGemma": ("<start_function_call>call:", "functiongemma", None),
    "DeepSeek-R1": ("</think> ... <\uff5cAssistant\uff5c>", None, "deepseek_r1"),
    "SmolLM2": ("You are a helpful AI assistant named SmolLM", "smollm", None),
    "GLM 4": ("<tool_call>function_name", None, None),
    "others": ("<|user|> ... <|assistant|>", None, None),
}


@pytest.mark.parametrize("model", TEMPLATES)
def test_formats_are_detected_in_chat_templates(model: str) -> None:
    template, *formats = TEMPLATES[model]
    assert detect_formats(template) == tuple(formats)


def test_markers_that_are_special_tokens_are_found(tmp_path: Path) -> None:
    added = [
        AddedToken("<|tool_call>", special=True),
        AddedToken("<tool_call>", special=False),
        AddedToken("<|channel>", special=True),
        AddedToken("<|other|>", special=True),
    ]
    tokenizer = Tokenizer(write_tokenizer(tmp_path, added))
    vocabulary = tokenizer.get_vocab()
    found = special_markers(tokenizer, "gemma4", "gemma4")
    assert found == {name: vocabulary[name] for name in ("<|tool_call>", "<|channel>")}
    assert special_markers(tokenizer, "hermes", "qwen3") == {}


def test_a_prompt_that_opens_the_reasoning_starts_in_it() -> None:
    assert starts_in_reasoning("qwen3", "<|im_start|>assistant\n<think>\n")
    assert not starts_in_reasoning("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert starts_in_reasoning("gemma4", "<|turn>model\n<|channel>thought\n")
    assert not starts_in_reasoning(None, "<think>\n")


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        make_parser("gorilla", None, starts_in_reasoning=False)
    assert caught.value.field == "tool_call_parser"
    assert all(name in str(caught.value) for name in TOOL_FORMATS)
    with pytest.raises(InvalidArgumentError) as caught:
        make_parser(None, "gorilla", starts_in_reasoning=False)
    assert caught.value.field == "reasoning_parser"
    assert all(name in str(caught.value) for name in REASONING_FORMATS)
