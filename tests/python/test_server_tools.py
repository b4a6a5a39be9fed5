"""Chats with tools, reasoning and restricted answers, in servers with and without speculation.

Several tests are cases that end or corrupt answers of other servers that speculate.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import server_models
from server_client import Body, Client, assembled

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.settings import ServerSettings

USER = [{"role": "user", "content": "x y"}]
GREEDY = {"temperature": 0, "max_tokens": 12}
SCRIPTED = {"temperature": 0, "vllm_xargs": {"follow": 30.0}}
INTEGER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"type": "function", "function": {"name": "add", "parameters": INTEGER}}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, AsyncLLM]]:
    """One without speculation, and one whose drafts follow the script, allowed or not."""
    target, head = server_models.write_model(tmp_path_factory.mktemp("server"))
    eagle3 = {"model": str(head), "num_speculative_tokens": 6, "adaptive": False}
    llms = {
        name: AsyncLLM(
            target,
            speculative_config=config,
            max_model_len=128,
            check_invariants=True,
            logits_processors=[server_models.FollowsScript],
        )
        for name, config in {"plain": None, "eagle3": eagle3}.items()
    }
    yield llms
    for llm in llms.values():
        llm.close()


def make_client(llm: AsyncLLM, **settings: Any) -> Iterator[Client]:
    client = Client(make_app(llm, ServerSettings(log_requests=False, **settings)))
    yield client
    client.close()


@pytest.fixture(scope="module")
def client(llms: dict[str, AsyncLLM]) -> Iterator[Client]:
    yield from make_client(llms["plain"])


@pytest.fixture(scope="module")
def drafting(llms: dict[str, AsyncLLM]) -> Iterator[Client]:
    yield from make_client(llms["eagle3"])


@pytest.mark.parametrize("strict", [False, True])
def test_with_tools_and_a_format_the_answer_is_calls_or_in_the_format(
    client: Client, strict: bool
) -> None:
    tool = {"type": "function", "function": {**ADD["function"], "strict": strict}}
    schema = {"name": "n", "schema": {"enum": [7]}}
    format_ = {"type": "json_schema", "json_schema": schema}
    options: Body = {
        "messages": USER,
        "tools": [tool],
        "response_format": format_,
        "max_tokens": 90,
    }
    found = [
        client.chat(**options, temperature=1.5, seed=seed).json["choices"][0] for seed in range(8)
    ]
    called = [
        choice["message"]["tool_calls"] for choice in found if choice["message"].get("tool_calls")
    ]
    answers = [choice["message"]["content"] for choice in found if choice["message"]["content"]]
    finished = [choice for choice in found if choice["finish_reason"] != "length"]
    assert called
    assert set(answers) == {"7"}
    assert all(choice["message"]["content"] in (None, "7") for choice in finished)
    wrong = {**options, "response_format": None, "guided_regex": "("}
    assert client.chat(**wrong).error["param"] == "guided_regex"


def test_tokenize_counts_what_a_chat_renders(llms: dict[str, AsyncLLM]) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ reasoning_effort }}"
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
        "{% for d in documents or [] %}{{ d.text }}{% endfor %}"
        '{% if add_generation_prompt %}>{% endif %}{# <tool_call> "arguments" #}'
    )
    clients = make_client(llms["plain"], chat_template=template)
    client = next(clients)
    bodies: list[Body] = [
        {"messages": [{"role": "developer", "content": "x"}]},
        {"messages": USER, "reasoning_effort": "high"},
        {"messages": USER, "documents": [{"title": "t", "text": "é"}], "tools": [ADD]},
        {"messages": USER, "add_generation_prompt": False},
    ]
    counts = set()
    for body in bodies:
        answer = client.chat(**body, **GREEDY, return_token_ids=True).json
        tokens = client.post("/tokenize", body).json["tokens"]
        assert tokens == answer["prompt_token_ids"]
        counts.add(len(tokens))
    assert len(counts) == len(bodies), "each has a part of its own"
    next(clients, None)


@pytest.mark.parametrize("max_tokens", range(1, 40, 3))
def test_a_demanded_call_that_is_cut_off_leaves_no_content(client: Client, max_tokens: int) -> None:
    bare = {"type": "function", "function": {"name": "f"}}
    options: Body = {"messages": USER, "tools": [bare], "max_tokens": max_tokens, "seed": 1}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        (found,) = client.chat(**options, tool_choice=choice).json["choices"]
        assert not found["message"]["content"]
        chunks = client.chat(**options, tool_choice=choice, stream=True).chunks
        assert not assembled(chunks)[0]["message"].get("content")


def test_only_allowed_tools_are_called_and_the_prompt_has_all(client: Client) -> None:
    other = {"type": "function", "function": {"name": "b", "parameters": INTEGER}}
    options: Body = {"messages": USER, "tools": [other, ADD], "max_tokens": 90, **SCRIPTED}
    options |= {"parallel_tool_calls": False, "return_token_ids": True}

    def answer(mode: str, *names: str) -> Any:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
        found = client.chat(**options, tool_choice=choice).json
        assert found["prompt_token_ids"] == whole["prompt_token_ids"]
        return found["choices"][0]

    whole = client.chat(**options).json
    (free,) = whole["choices"]
    assert [call["function"]["name"] for call in free["message"]["tool_calls"]] == ["add"]
    assert answer("auto", "b", "add")["message"]["content"] == free["message"]["content"]
    for name in ("add", "b"):
        found = answer("required", name)
        assert found["message"]["content"] is None
        (call,) = found["message"]["tool_calls"]
        assert call["function"]["name"] == name
    found = answer("auto", "b")["message"]
    assert found["content"] == free["message"]["content"]
    assert {call["function"]["name"] for call in found.get("tool_calls", ())} <= {"b"}


def test_a_template_that_does_not_read_tools_is_warned_of_once(
    llms: dict[str, AsyncLLM], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("forerun"), "propagate", True)  # a server unsets it
    unread = "{% for m in messages %}{{ m.content }}{% endfor %}{# SmolLM, {{ tools }} #}"
    in_macro = (
        "{% if tools is not defined %}{% set tools = none %}{% endif %}"
        "{% macro f() %}{{ tools | length if tools }}{% endmacro %}{{ f() }}{# SmolLM #}"
    )
    for template, num_warnings in ((unread, 1), (in_macro, 0)):
        caplog.clear()
        clients = make_client(llms["plain"], chat_template=template)
        client = next(clients)
        client.chat(messages=USER, **GREEDY)
        client.chat(messages=USER, tools=[ADD], tool_choice="none", **GREEDY)
        assert "does not read tools" not in caplog.text
        for _ in range(2):
            assert client.chat(messages=USER, tools=[ADD], **GREEDY).status == 200
        assert caplog.text.count("does not read tools") == num_warnings
        next(clients, None)


SCHEMA = {
    "type": "object",
    "properties": {"b": {"enum": ["x", "y"]}, "a": {"type": "array", "items": {"enum": [1, 7]}}},
    "required": ["b"],
    "additionalProperties": False,
}
RESTRICTED: Body = {
    "messages": USER,
    "max_tokens": 60,
    "include_metrics": True,
    "vllm_xargs": {"follow": 3.0},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
}


def check_same(client: Client, drafting: Client, body: Body) -> Body:
    """The answer, which is the same with speculation; its metrics are those of the drafts."""
    plain, drafted = client.chat(**body).json, drafting.chat(**body).json
    for answer in (plain, drafted):
        for call in answer["choices"][0]["message"].get("tool_calls", ()):
            call["id"] = ""
    assert drafted["choices"] == plain["choices"]
    assert drafted["usage"] == plain["usage"]
    chunks = drafting.chat(**body, stream=True, stream_options={"include_usage": True}).chunks
    assert sum(len(chunk["choices"]) for chunk in chunks) == plain["usage"]["completion_tokens"]
    content = plain["choices"][0]["message"]["content"]
    assert assembled(chunks)[0]["message"].get("content", "") == (content or "")
    return drafted


# sgl-project/sglang 9187: the answer ended at the first token that the draft had wrong.
def test_a_draft_that_the_schema_forbids_does_not_end_the_answer(
    client: Client, drafting: Client
) -> None:
    num_forbidden = 0
    for seed in range(6):
        answer = check_same(client, drafting, {**RESTRICTED, "seed": seed})
        (choice,) = answer["choices"]
        metrics = answer["metrics"]
        num_forbidden += metrics["num_draft_tokens"] - metrics["num_accepted_tokens"]
        if choice["finish_reason"] == "stop":
            assert json.loads(choice["message"]["content"])["b"] in ("x", "y")
    assert num_forbidden > 20


# sgl-project/sglang 20148: the service crashed after some such requests, with long drafts.
def test_many_requests_with_schemas_and_long_drafts_are_all_answered(drafting: Client) -> None:
    for round_ in range(3):
        calls = [(CHAT, {**RESTRICTED, "seed": 10 * round_ + index}) for index in range(6)]
        for reply in drafting.post_all(calls):
            assert reply.status == 200
            (choice,) = reply.json["choices"]
            if choice["finish_reason"] == "stop":
                json.loads(choice["message"]["content"])
    assert drafting.get("/health").status == 200


# vllm-project/vllm 52767: draft tokens after the stop token went on to the grammar's matcher.
@pytest.mark.parametrize("num_draft_tokens", range(1, 7))
def test_draft_tokens_after_the_end_do_not_reach_the_grammar(
    client: Client, drafting: Client, num_draft_tokens: int
) -> None:
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    body = {"messages": USER, "max_tokens": 90, **SCRIPTED, "max_draft_tokens": num_draft_tokens}
    answer = check_same(client, drafting, {**body, "tools": [strict], "include_metrics": True})
    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 12}'}
    assert choice["message"]["content"].endswith("done. Then")
    assert choice["finish_reason"] == "tool_calls"
    assert answer["metrics"]["num_accepted_tokens"] > 0
    for kind in (
        {"guided_choice": ["It is"]},
        {"guided_regex": " done"},
        {"guided_json": {"enum": [12]}},
    ):
        found = check_same(client, drafting, {**body, **kind})["choices"][0]
        assert found["finish_reason"] == "stop"
