"""/openapi.json: what it says of requests and answers is what is read and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import server_models
from server_client import Body, Client, Reply

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.parameters import CHAT, COMPLETION
from forerun.server.settings import ServerSettings

USER = [{"role": "user", "content": "x y"}]
SCRIPTED = {"temperature": 0, "max_tokens": 60, "vllm_xargs": {"follow": 30.0}}
EVERYTHING: Body = {
    **SCRIPTED,
    "include_metrics": True,
    "return_token_ids": True,
    "n": 1,
}
ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
}
CHAT_REQUEST: Body = {"messages": USER, "tools": [ADD], "logprobs": True, "top_logprobs": 2}
STREAM: Body = {
    "stream": True,
    "stream_options": {
        "include_usage": True,
        "continuous_usage_stats": True,
        "include_drafts": True,
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("server"))
    llm = AsyncLLM(
        target,
        speculative_config={"method": "suffix"},
        max_model_len=128,
        logits_processors=[server_models.FollowsScript],
    )
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    yield client
    client.close()
    llm.close()


@pytest.fixture(scope="module")
def document(client: Client) -> Body:
    found: Body = client.get("/openapi.json").json
    return found


def check(document: Body, schema: Body, value: Any) -> None:
    """Checks a value; references are those of the document."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(
        value
    )


def check_reply(document: Body, path: str, reply: Reply, method: str = "post") -> None:
    found = document["paths"][path][method]["responses"]
    name = str(reply.status) if str(reply.status) in found else f"{reply.status // 100}XX"
    content = found[name]["content"]
    if reply.headers["content-type"].startswith("text/event-stream"):
        schema = content["text/event-stream"]["schema"]["contentSchema"]
        for chunk in reply.chunks:
            check(document, schema, chunk)
    else:
        check(document, content["application/json"]["schema"], reply.json)


def test_every_parameter_is_described(document: Body) -> None:
    schemas = document["components"]["schemas"]
    bodies = [name for name in schemas if name.endswith("Request")]
    assert len(bodies) == 4
    for name in (
        *bodies,
        "StreamOptions",
        "ResponseFormat",
        "JsonSchema",
        "Tool",
        "Function",
        "Prediction",
    ):
        for field, found in schemas[name]["properties"].items():
            assert found["description"], (name, field)
    for name, fields in (("ChatRequest", CHAT), ("CompletionRequest", COMPLETION)):
        assert set(fields) <= set(schemas[name]["properties"])


@pytest.mark.parametrize("options", [{}, EVERYTHING, {**EVERYTHING, "speculative": False}])
@pytest.mark.parametrize("stream", [{}, STREAM])
def test_answers_follow_their_schema(
    client: Client, document: Body, options: Body, stream: Body
) -> None:
    chat = client.chat(**{**CHAT_REQUEST, **SCRIPTED, **options, **stream})
    assert chat.status == 200
    assert "tool_calls" in chat.text
    assert "reasoning" in chat.text
    check_reply(document, "/v1/chat/completions", chat)
    plain = client.chat(messages=USER, **{**SCRIPTED, **options, **stream})
    check_reply(document, "/v1/chat/completions", plain)
    beside: Body = {} if stream else {"echo": True, "prompt_logprobs": 1}
    body = {"prompt": ["x", "y"], "logprobs": 2, **SCRIPTED, **options, **stream, **beside}
    check_reply(document, "/v1/completions", client.complete(**body))


def test_other_routes_follow_their_schema(client: Client, document: Body) -> None:
    for path in ("/v1/models", "/health", "/version"):
        check_reply(document, path, client.get(path), "get")
    name = client.get("/v1/models").json["data"][0]["id"]
    card = client.get(f"/v1/models/{name}")
    check_reply(document, "/v1/models/{name}", card, "get")
    tokens = client.post("/tokenize", {"prompt": "x", "return_token_strs": True})
    check_reply(document, "/tokenize", tokens)
    check_reply(document, "/detokenize", client.post("/detokenize", {"tokens": [5]}))
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        check_reply(document, path, client.post(path, {"no": 1}))


def test_a_schema_refuses_what_is_not_in_it(client: Client, document: Body) -> None:
    answer = client.complete(prompt="x", **SCRIPTED).json
    schema = {"$ref": "#/components/schemas/Completion"}
    check(document, schema, answer)
    for wrong in ({**answer, "more": 1}, {**answer, "choices": [{"index": 0}]}):
        with pytest.raises(jsonschema.ValidationError):
            check(document, schema, wrong)


def test_examples_of_bodies_follow_their_schema(document: Body) -> None:
    schema = {"$ref": "#/components/schemas/ChatRequest"}
    check(document, schema, {**CHAT_REQUEST, **EVERYTHING, **STREAM, "user": "me", "store": False})
    for wrong in ({"store": True}, {"unknown": 1}, {"n": 129}):
        with pytest.raises(jsonschema.ValidationError):
            check(document, schema, {**CHAT_REQUEST, **wrong})
