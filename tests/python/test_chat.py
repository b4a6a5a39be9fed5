"""Chats: named templates, tools, content parts and tool calls, against transformers and vLLM."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from tokenizer_files import write_tokenizer
from transformers import AutoTokenizer
from transformers.utils import get_json_schema

from forerun import LLM, SamplingParams
from forerun.errors import CheckpointError, InvalidArgumentError
from forerun.text.chat_template import content_format
from forerun.text.tokenizer import Tokenizer
from forerun.text.tool_schemas import function_schema

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
TOOLS = "{{ tools | tojson }}|{{ documents | tojson }}|{{ messages[0].content }}"
CHAT = [{"role": "user", "content": " hi "}]
SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"ä": [1, None]}}}
NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": TOOLS}]


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


def weather(
    city: str, days: int = 3, units: Literal["C", "F"] | None = None, tags: list[str] | str = ""
) -> dict[str, float]:
    """Tells the weather.

    For a city: in detail.

    Args:
        city: its name
            that may take two lines
        days (int): how many (choices: [1, 3, " 7 "])
        units: degrees: Celsius or Fahrenheit
        tags: some

    Returns:
        Temperatures by hour
    """
    raise NotImplementedError


def paint(color: Color, at: tuple[int, float], more: Any, by: dict[str, bool | None]) -> bytes:
    """Paints.

    Args:
        color: which
        at: where
        more: anything
        by: whom
    Raises:
        ValueError: never
    """
    raise NotImplementedError


@pytest.mark.parametrize("function", [weather, paint])
def test_functions_become_the_schemas_of_transformers(function: Callable[..., Any]) -> None:
    assert function_schema("tools[0]", function) == get_json_schema(function)


FILES: dict[str, dict[str, Any]] = {
    "a list": {"tokenizer_config": {"chat_template": NAMED}},
    "files": {
        "tokenizer_config": {},
        "chat_template.jinja": PLAIN,
        "additional_chat_templates/tool_use.jinja": TOOLS,
    },
    "one": {"tokenizer_config": {"chat_template": PLAIN}},
    "a file": {"tokenizer_config": {}, "chat_template.jinja": PLAIN},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": [SCHEMA]},
        {"tools": [weather, SCHEMA], "documents": [{"title": "t", "text": "x"}]},
        {"tools": []},
        {"chat_template": TOOLS, "tools": [SCHEMA]},
        {"chat_template": "tool_use"},
        {"chat_template": "tool_use", "tools": [SCHEMA]},
        {"chat_template": "{{ x }}{{ messages | tojson(True, 2) }}", "x": "<é>"},
        {"chat_template": "{{ x | tojson(indent=1, sort_keys=true) }}", "x": {"b": 1, "a": "é"}},
        {"chat_template": "{{ x | tojson(false, none, [',', ':']) }}", "x": {"b": 1, "a": "é"}},
        {"tokenize": True, "return_dict": False},
        {"tokenize": True, "add_generation_prompt": True},
    ],
)
def test_templates_are_chosen_and_rendered_as_in_transformers(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    directory = write_tokenizer(tmp_path, **FILES[name])
    ours, theirs = Tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert ours.chat_template == theirs.chat_template
    if options.get("chat_template") == "tool_use" and name in ("one", "a file"):
        with pytest.raises(InvalidArgumentError, match="the name of one: default"):
            ours.apply_chat_template(CHAT, **options)
        return
    for chat in (CHAT, [CHAT, CHAT]):
        arguments = {"tokenize": False, **options}
        expected = theirs.apply_chat_template(chat, **arguments)
        actual = ours.apply_chat_template(chat, **arguments)
        assert (dict(actual) if isinstance(actual, dict) else actual) == (
            dict(expected) if hasattr(expected, "keys") else expected
        )


def test_names_of_templates_are_listed(tmp_path: Path) -> None:
    ours = Tokenizer(write_tokenizer(tmp_path / "a", **FILES["a list"]))
    with pytest.raises(InvalidArgumentError, match="the name of one: default, tool_use"):
        ours.apply_chat_template(CHAT, chat_template="tool_uze")
    only = {"tokenizer_config": {"chat_template": NAMED[1:]}}
    with pytest.raises(InvalidArgumentError, match="one of tool_use"):
        Tokenizer(write_tokenizer(tmp_path / "b", **only)).apply_chat_template(CHAT)


@pytest.mark.parametrize(
    "template", [[{}], 3, [3], [{"name": "default"}], {"default": 3}, [{"name": 1, "template": ""}]]
)
def test_an_invalid_template_is_an_error_when_it_is_used(tmp_path: Path, template: Any) -> None:
    ours = Tokenizer(write_tokenizer(tmp_path, tokenizer_config={"chat_template": template}))
    assert ours.encode("hi")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template"):
        ours.render_chat(CHAT)


@dataclasses.dataclass
class Message:
    role: str
    content: Any = None


PARTS = [{"type": "text", "text": "one "}, {"type": "input_text", "text": "two"}, "three"]
LOOPING = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}"
    "({{ part.type }}:{{ part.text }}){% endfor %}{% endfor %}"
)
MACRO = (
    "{% macro show(body) %}{% for part in body %}({{ part.text }}){% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(m['content']) }}{% endfor %}"
)
ASSIGNED = (
    "{% for m in messages %}{% set body = m.content | list %}"
    "{% for part in body[0:] %}{{ part.text }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, "string"),
        ("{{ messages[0]['content'].split('x')[0] }}", "string"),
        ("{% for x in messages[0].content.split() %}{{ x }}{% endfor %}", "string"),
        ("{{ messages }}", "string"),
        ("", "string"),
        (LOOPING, "openai"),
        (MACRO, "openai"),
        (ASSIGNED, "openai"),
    ],
)
def test_the_content_format_of_a_template_is_detected(template: str, expected: str) -> None:
    assert content_format(template) == expected


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path))


def test_parts_become_text_for_templates_that_read_text(tokenizer: Tokenizer) -> None:
    def render(content: Any, template: str = PLAIN, **options: Any) -> str:
        messages = [{"role": "user", "content": content}]
        return tokenizer.render_chat(messages, template=template, **options)

    assert render([{"type": "text", "text": "hi"}]) == "[user]hi"
    assert render(PARTS) == "[user]one \ntwo\nthree"
    assert render([]) == render(None) == "[user]"
    for kind in ("refusal", "thinking"):
        assert render([{"type": kind, kind: "no"}]) == "[user]no"
    assert render([{"type": "output_text", "text": "x"}, {"text": "y"}]) == "[user]x\ny"
    assert render([{"type": "text", "text": None}, {"type": "text", "text": "y"}]) == "[user]y"
    assert render(PARTS, LOOPING) == "[user](text:one )(text:two)(text:three)"
    assert render("hi", LOOPING) == "[user](text:hi)"
    assert render("hi", LOOPING, content_format="string") == "[user](:)(:)"
    assert render("hi", "{{ messages[0].content }}", content_format="openai").startswith("[{'type'")
    with pytest.raises(InvalidArgumentError, match="chat_template_content_format"):
        render("hi", content_format="openapi")


def test_messages_may_be_objects(tokenizer: Tokenizer) -> None:
    class Model:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "user", "content": PARTS[:1]}

    messages = [Message("system", "a"), Model(), Message("assistant")]
    assert tokenizer.render_chat(messages, template=PLAIN) == "[system]a[user]one[assistant]"


def test_tool_calls_reach_the_template_as_dicts(tokenizer: Tokenizer) -> None:
    template = "{{ messages[1].tool_calls[0].function.arguments | tojson }}"

    def render(arguments: Any) -> str:
        call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": arguments}}
        messages = [*CHAT, {"role": "assistant", "tool_calls": [call]}]
        before = repr(messages)
        text = tokenizer.render_chat(messages, template=template)
        assert repr(messages) == before
        return text

    assert render('{"x": 1}') == render({"x": 1}) == '{"x": 1}'
    for malformed in ("{", "[]", "3", "", None, [1]):
        assert render(malformed) == "{}"
    tool = {"role": "tool", "content": PARTS[:2], "tool_call_id": "1"}
    assert tokenizer.render_chat([tool], template="{{ messages[0].content }}") == "one \ntwo"
    gone = [{"role": "assistant", "content": "x", "tool_calls": []}]
    assert tokenizer.render_chat(gone, template="{{ messages[0].tool_calls }}") == ""
    thought = [{"role": "assistant", "content": "x", "reasoning": "y"}]
    assert tokenizer.render_chat(thought, template="{{ messages[0].reasoning_content }}") == "y"


def message(**fields: Any) -> list[Any]:
    return [{"role": "user", "content": "hi"}, {"role": "assistant", **fields}]


@pytest.mark.parametrize(
    ("field", "messages"),
    [
        ("messages[1].content[0].type", message(content=[{"type": "image_url", "image_url": ""}])),
        ("messages[1].content[1].type", message(content=["a", {"type": "input_audio"}])),
        ("messages[1].content[0].type", message(content=[{}])),
        ("messages[1].content[0].type", message(content=[{"type": ["text"]}])),
        ("messages[1].content[0].text", message(content=[{"type": "text", "text": 3}])),
        ("messages[1].content[0]", message(content=[3])),
        ("messages[1].content", message(content=3)),
        ("messages[1].content", message(content={"text": "hi"})),
        ("messages[1]['content']", message(content=b"hi")),
        ("messages[1]['content']", message(content="\ud83d")),
        ("messages[1]['content'][0]['text']", message(content=[{"text": "\ud83d"}])),
        ("messages[1]['x']", message(x=object())),
        ("messages[1].tool_calls", message(tool_calls=3)),
        ("messages[1].tool_calls[0]", message(tool_calls=[3])),
        ("messages[1].tool_calls[0]", message(tool_calls=[{"type": "other"}])),
        ("messages[0]['role']", [{"role": "\ud83d"}]),
        ("messages[0]", [{"role": None, "content": "x"}]),
        ("messages[0]", [3]),
        ("messages[1]", [*CHAT, "hi"]),
        ("messages", {}),
        ("messages", 3),
    ],
)
def test_wrong_messages_are_named(tokenizer: Tokenizer, field: str, messages: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        tokenizer.render_chat(messages, template=PLAIN)
    assert caught.value.field == field


def test_messages_that_hold_themselves_are_refused(tokenizer: Tokenizer) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidArgumentError, match="at most"):
        tokenizer.render_chat(message(content=loop), template=PLAIN)


@pytest.fixture(scope="module")
def llm(tiny_dir: Path) -> LLM:
    return LLM(tiny_dir, max_model_len=128)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("chat_template", {"chat_template": 3}),
        ("chat_template", {"chat_template": ["x"]}),
        ("chat_template", {"chat_template": "\ud83d{{ x }}"}),
        ("chat_template", {"chat_template": "{% for %}"}),
        ("chat_template", {"chat_template": "no_such_name"}),
        ("chat_template", {"chat_template": "{{ '\\ud83d' }}"}),
        ("chat_template_kwargs['messages']", {"chat_template_kwargs": {"messages": []}}),
        ("chat_template_kwargs['tools']", {"chat_template_kwargs": {"tools": []}}),
        ("chat_template_kwargs['tokenize']", {"chat_template_kwargs": {"tokenize": True}}),
        (
            "chat_template_kwargs['continue_final_message']",
            {"chat_template_kwargs": {"continue_final_message": True}},
        ),
        ("chat_template_kwargs", {"chat_template_kwargs": 3}),
        ("chat_template_kwargs key", {"chat_template_kwargs": {3: 1}}),
        ("chat_template_kwargs['x']", {"chat_template_kwargs": {"x": "\ud83d"}}),
        ("add_generation_prompt", {"add_generation_prompt": 3}),
        ("continue_final_message", {"continue_final_message": "yes"}),
    ],
)
def test_wrong_arguments_of_a_chat_are_named(llm: LLM, field: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        llm.chat(CHAT, SamplingParams(max_tokens=1), use_tqdm=False, **options)
    assert caught.value.field == field


def test_chats_take_parts_and_variables(llm: LLM) -> None:
    text = llm.get_tokenizer().decode(llm.render_chat(CHAT)["prompt_token_ids"])
    parts = [{"role": "user", "content": [{"type": "text", "text": " hi "}]}]
    assert llm.render_chat(parts) == llm.render_chat(CHAT)
    assert text == "[user] hi \n[assistant]"
    prompt = llm.render_chat(CHAT, chat_template="{{ x }}{{ tools }}", x="A", tools=[SCHEMA])
    shown = llm.get_tokenizer().decode(prompt["prompt_token_ids"])
    assert shown.startswith("A[{'type': 'function'")
    one = SamplingParams(max_tokens=1)
    [output] = llm.chat(parts, one, use_tqdm=False, chat_template_kwargs={"x": 1})
    assert output.prompt_token_ids == llm.render_chat(CHAT)["prompt_token_ids"]
