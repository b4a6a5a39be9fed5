"""Bodies that are wrong are answered with 400 and the name of what is wrong in them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import server_models
from server_client import Body, Client, Reply

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.protocol import ChatRequest, CompletionRequest
from forerun.server.settings import ServerSettings

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "x"}]
VALID: dict[str, Body] = {
    CHAT: {"messages": USER, "max_tokens": 1},
    COMPLETION: {"prompt": "x", "max_tokens": 1},
}
TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = [TOOL, {"type": "function", "function": {"name": "g"}}]
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": NAMED}}
NO_INTEGER = ["5", 5.5, True, [], {}, "x", 10**30]
NO_NUMBER = ["0.5", True, [], {}, "nan"]
NO_BOOL = [0, 1, "true", "no", [], {}]
NO_STRING = [5, 0.5, True, [], {}]
NO_LIST = [5, "x", {}, True, [None], [[]], [{}]]
NO_OBJECT = [5, "x", [], True, [{}]]
WRONG: dict[str, list[Any]] = {
    "max_tokens": [*NO_INTEGER, 0, -1],
    "max_completion_tokens": [*NO_INTEGER, 0, -1],
    "n": [*NO_INTEGER, 0, -1, 129],
    "seed": [*NO_INTEGER, -2],
    "temperature": [*NO_NUMBER, -0.1, 1e300 * 1e10],
    "top_p": [*NO_NUMBER, 0, -1, 1.1],
    "min_p": [*NO_NUMBER, -0.1, 1.1],
    "repetition_penalty": [*NO_NUMBER, 0, -1],
    "presence_penalty": [*NO_NUMBER, -2.1, 2.1],
    "frequency_penalty": [*NO_NUMBER, -2.1, 2.1],
    "timeout": [*NO_NUMBER],
    **dict.fromkeys(("top_k", "min_tokens", "priority", "max_draft_tokens"), NO_INTEGER),
    "prompt_logprobs": [*NO_INTEGER, -2],
    "top_logprobs": [*NO_INTEGER, -1, 21, 1],
    **dict.fromkeys(("stream", "ignore_eos", "include_stop_str_in_output"), NO_BOOL),
    **dict.fromkeys(("skip_special_tokens", "return_token_ids", "speculative"), NO_BOOL),
    **dict.fromkeys(("return_tokens_as_token_ids", "include_metrics", "echo"), NO_BOOL),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), NO_BOOL),
    **dict.fromkeys(("include_reasoning", "parallel_tool_calls"), NO_BOOL),
    "guided_json_object": NO_BOOL[:1] + NO_BOOL[2:],
    **dict.fromkeys(("request_id", "cache_salt", "reasoning_effort"), NO_STRING),
    "model": [*NO_STRING],
    "guided_regex": [*NO_STRING, "", "[", "(?<=a)b"],
    "guided_grammar": [*NO_STRING, "", "root ::= ("],
    "guided_whitespace_pattern": [*NO_STRING, "x"],
    "guided_json": [5, True, [], "", "{", {"type": "foo"}, {"enum": []}, "[1]"],
    "guided_choice": [*NO_LIST, [], [""], [5]],
    "stop": [5, True, {}, "", [""], [5], ["\ud800"]],
    "bad_words": [*NO_LIST, [""], [" "]],
    "stop_token_ids": [*NO_LIST, [-1], ["5"], [10**9]],
    "allowed_token_ids": [*NO_LIST, [], [-1], ["5"], [10**9]],
    "logit_bias": [*NO_OBJECT, {"x": 1}, {"-1": 1}, {"1": "x"}, {"1": 101}, {"999999": 1}],
    "vllm_xargs": NO_OBJECT,
    "documents": [5, "x", {}, True, [5], [None]],
    "chat_template_kwargs": [*NO_OBJECT, {"messages": 1}, {"tokenize": True}],
    "structured_outputs": [*NO_OBJECT, {}, {"json": {}, "regex": "a"}, {"foo": 1}],
    "response_format": [
        *NO_OBJECT,
        {},
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}},
        {"type": "text", "more": 1},
    ],
    "stream_options": [*NO_OBJECT, {"include_usage": 1}, {"foo": True}, {"include_usage": True}],
    "tools": [
        *NO_LIST,
        [{"type": "function"}],
        [{"type": "code", "function": {"name": "f"}}],
        [{"type": "function", "function": {}}],
        [{"type": "function", "function": {"name": ""}}],
        [{"type": "function", "function": {"name": "f", "parameters": []}}],
        [{"type": "function", "function": {"name": 5}}],
    ],
    "tool_choice": [
        5,
        True,
        [],
        {},
        "maybe",
        "required",
        "auto",
        {"type": "function"},
        {"type": "allowed_tools"},
    ],
    "messages": [
        *NO_LIST,
        None,
        [],
        [5],
        [{"content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": [{"type": "input_audio"}]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "tool_calls": 5}],
        [{"role": "assistant", "tool_calls": [{"function": "x"}]}],
        [{"role": "user", "content": "x" * 500}],
    ],
    "prompt": [
        *(5, True, {}, None, "", [], [[]], [5.5], [None], ["x", 5], [5, "x"], [-1], [10**9]),
        *([10**30], ["x", ""], [[1], [-1]], "\ud800", ["\ud800"], "x" * 500),
    ],
}
# Of one endpoint alone, or known and refused.
WRONG_HERE: dict[str, dict[str, list[Any]]] = {
    CHAT: {
        "logprobs": NO_BOOL,
        "functions": [[{"name": "f"}]],
        "function_call": ["auto"],
        "audio": [{"voice": "x"}],
        "prediction": [
            *NO_OBJECT,
            {},
            {"content": "x"},
            {"type": "text", "content": "x"},
            {"type": "content"},
            {"type": "content", "content": 5},
            {"type": "content", "content": [5]},
            {"type": "content", "content": [{"type": "image_url"}]},
            {"type": "content", "content": "\ud800"},
            {"type": "content", "content": "x" * 500},
        ],
        "modalities": [["audio"], 5],
        "store": [True],
        "service_tier": ["flex"],
        "web_search_options": [{"x": 1}],
        "chat_template": ["{{ messages }}"],
        "echo": [True, "x"],
        "use_beam_search": [True],
        "prompt": ["x"],
        "unknown": [None, 1],
    },
    COMPLETION: {
        "logprobs": [*NO_INTEGER, -1, 21],
        "best_of": [2],
        "suffix": ["x"],
        "prediction": [{"type": "content", "content": "x"}],
        "prompt_embeds": ["x"],
        "truncate_prompt_tokens": [1],
        "messages": [USER],
        "unknown": [None, 1],
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("server"))
    llm = AsyncLLM(target, max_model_len=128)
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    yield client
    client.close()
    llm.close()


def wrong_bodies() -> list[tuple[str, str, Any]]:
    """Paths with a parameter and a value that is wrong for it."""
    found = []
    for path, model in ((CHAT, ChatRequest), (COMPLETION, CompletionRequest)):
        for name in model.model_fields:
            values = WRONG_HERE[path].get(name) or WRONG[name]
            found += [(path, name, value) for value in values]
        for name, values in WRONG_HERE[path].items():
            if name not in model.model_fields:
                found += [(path, name, value) for value in values]
    return found


def check_refusal(reply: Reply, name: str) -> None:
    error = reply.error
    assert reply.status in (400, 404), reply.text
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None
    assert error["param"].replace("[", ".").split(".")[0] == name, reply.text
    assert error["code"] is not None


def test_every_wrong_value_is_refused_by_its_name(client: Client) -> None:
    bodies = wrong_bodies()
    assert len(bodies) >= 500
    failures = []
    for index, (path, name, value) in enumerate(bodies):
        is_streamed = index % 2 == 0 and not name.startswith("stream")
        body = {**VALID[path], name: value} | ({"stream": True} if is_streamed else {})
        reply = client.post(path, body)
        try:
            check_refusal(reply, name)
        except (AssertionError, KeyError, ValueError):
            failures.append((body, reply.status, reply.text[:200]))
    assert not failures, "\n".join(map(str, failures))
    assert client.complete(**VALID[COMPLETION]).status == 200


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_bodies_that_are_no_json_are_refused(client: Client, path: str) -> None:
    text = '{"prompt": "x", "messages": [{"role": "user", "content": "é"}]}'.encode()
    rng = random.Random(3)
    bodies = [text[: rng.randrange(len(text))] for _ in range(60)]
    bodies += [
        b'{"max_tokens":' + b"9" * 5000 + b"}",
        b"",
        b"[" * 100_000,
        b"\xff\xfe",
        b"[]",
        b"5",
        b"null",
        b'"x"',
        b"NaN",
    ]
    for body in bodies:
        for kind in ("application/json", "text/plain"):
            reply = client.run(
                client.call("POST", path, content=body, headers={"content-type": kind})
            )
            assert reply.status == 400, body
            assert reply.error["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"foo": 1}, "foo", "unknown_parameter"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"model": "other"}, "model", "model_not_found"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages", None),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", None),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
            "invalid_value",
        ),
        (
            {"tools": [TOOL], "tool_choice": ALLOWED},
            "tool_choice.allowed_tools.tools[1].function.name",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content", None),
        ({"documents": [{"it's": "\ud83d"}]}, "documents[0].it's", None),
        ({"chat_template_kwargs": {"\ud83d": 1}}, "chat_template_kwargs", "invalid_value"),
        ({"chat_template_kwargs": {"a": "\ud83d"}}, "chat_template_kwargs.a", None),
        ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools", None),
        ({"reasoning_effort": "\ud83d"}, "reasoning_effort", "invalid_value"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "\ud83d"}},
            "chat_template_kwargs.reasoning_effort",
            "invalid_value",
        ),
        (
            {"guided_json": "{}", "guided_whitespace_pattern": ""},
            "guided_whitespace_pattern",
            "invalid_value",
        ),
        (
            {"guided_json": "{}", "guided_whitespace_pattern": "("},
            "guided_whitespace_pattern",
            "invalid_value",
        ),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "invalid_value"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "invalid_value"),
    ],
)
def test_errors_name_the_part_that_is_wrong(
    client: Client, options: Body, param: str, code: str | None
) -> None:
    error = client.post(CHAT, {**VALID[CHAT], **options}).error
    assert error["param"] == param
    assert code in (None, error["code"])


def test_a_missing_parameter_is_named(client: Client) -> None:
    error = client.post(CHAT, {}).error
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")
    error = client.post(COMPLETION, {}).error
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/moderations"])
def test_what_there_is_not_is_refused_by_name(client: Client, path: str) -> None:
    reply = client.post(path, {"input": "x"})
    assert reply.status == 404
    assert path in reply.error["message"]
    assert reply.error["code"] == "unsupported_endpoint"


def test_unknown_paths_and_methods_are_refused_in_openais_form(client: Client) -> None:
    assert client.get("/v1/nothing").status == 404
    reply = client.get(CHAT)
    assert reply.status == 405
    assert "GET /v1/chat/completions" in reply.error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": USER}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "\ud83d"}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [10**9]}, "tokens[0]"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, "model"),
    ],
)
def test_wrong_texts_and_tokens_are_refused(
    client: Client, path: str, body: Body, param: str
) -> None:
    assert client.post(path, body).error["param"] == param


def test_a_failed_request_is_an_error_and_harms_no_other(client: Client, tmp_path: Path) -> None:
    body = {"prompt": "x", "temperature": 0, "max_tokens": 9, "vllm_xargs": {"follow": "no number"}}
    reply = client.complete(**body)
    assert reply.status == 200, "there is no processor here"
    target, _ = server_models.write_model(tmp_path)
    llm = AsyncLLM(target, max_model_len=128, logits_processors=[server_models.FollowsScript])
    failing = Client(make_app(llm, ServerSettings(log_requests=False)))
    good = {"prompt": "x", "temperature": 0, "max_tokens": 30}
    replies = failing.post_all([(COMPLETION, good), (COMPLETION, body), (COMPLETION, good)])
    assert [each.status for each in replies] == [200, 500, 200]
    assert replies[1].error["code"] == "request_failed"
    assert replies[1].headers["x-should-retry"] == "false"
    assert replies[0].json["choices"] == replies[2].json["choices"]
    assert failing.complete(**body, stream=True).error["code"] == "request_failed"
    late = {**body, "vllm_xargs": {"fail_after": 3}, "stream": True}
    *chunks, last = failing.complete(**late).chunks
    assert len(chunks) == 3
    assert last["error"]["code"] == "request_failed"
    failing.close()
    llm.close()
