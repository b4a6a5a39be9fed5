"""What one request may cost: large bodies of mistakes, texts, log-probabilities, completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import server_models
from server_client import Body, Client

from forerun import AsyncLLM
from forerun.engine.memory_file import MemoryFile
from forerun.server.app import make_app
from forerun.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from forerun.server.settings import ServerSettings
from forerun.server.tenants import tenant_of_key

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "x"}]
GREEDY = {"temperature": 0, "max_tokens": 2}
MODELS = {
    CHAT: ChatRequest,
    COMPLETION: CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
VALID: dict[str, Body] = {
    CHAT: {"messages": USER, **GREEDY},
    COMPLETION: {"prompt": "x", **GREEDY},
    "/tokenize": {"messages": USER},
    "/detokenize": {"tokens": [1]},
}
NAMES: Body = {str(number): None for number in range(500)}
FUNCTION = {"type": "function", "function": NAMES}
PARTS = {"type": "content", "content": [None] * 500}
MANY_MISTAKES = ([None] * 500, [[None] * 50] * 50, NAMES, [NAMES] * 50, [FUNCTION] * 50, PARTS)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncLLM]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("server"))
    llm = AsyncLLM(target, max_model_len=128)
    yield llm
    llm.close()


def make_client(llm: AsyncLLM, **settings: Any) -> Client:
    return Client(make_app(llm, ServerSettings(log_requests=False, **settings)))


@pytest.fixture(scope="module")
def client(llm: AsyncLLM) -> Iterator[Client]:
    client = make_client(llm)
    yield client
    client.close()


@pytest.mark.parametrize("path", list(MODELS))
def test_a_body_of_mistakes_alone_gets_a_short_answer(client: Client, path: str) -> None:
    for name in MODELS[path].model_fields:
        for value in MANY_MISTAKES:
            reply = client.post(path, {**VALID[path], name: value})
            if reply.status != 200:  # a dict of anything is valid for some
                assert reply.status == 400, name
                assert len(reply.text) < 6000, name
    reply = client.post(path, NAMES)
    assert reply.error["code"] == "invalid_value"
    assert len(reply.text) < 6000


def test_what_each_completion_has_a_copy_of_is_limited(client: Client) -> None:
    several: Body = {"prompt": ["x"] * 1024, **GREEDY}
    reply = client.post(COMPLETION, {**several, "stop_token_ids": [1] * 1025})
    assert (reply.status, reply.error["param"]) == (400, "stop_token_ids")
    reply = client.post(COMPLETION, {**several, "allowed_token_ids": list(range(1, 4)) * 400})
    assert (reply.status, reply.error["param"]) == (400, "allowed_token_ids")
    reply = client.complete(prompt="x", **GREEDY, logit_bias={str(i): 0 for i in range(1025)})
    assert (reply.status, reply.error["param"]) == (400, "logit_bias")
    assert client.complete(prompt="x", **GREEDY, stop_token_ids=[1] * 1025).status == 200


def test_the_log_probabilities_of_an_answer_are_limited(llm: AsyncLLM) -> None:
    client = make_client(llm, max_logprobs=-1)
    most, size = 4_000_000, llm.limits.vocab_size
    several: Body = {"n": 128, "temperature": 1, "max_tokens": 10**6}
    num_top = most // (128 * llm.limits.max_model_len)
    text = "x" * 100
    num_texts = most // (len(text) * size) + 1
    for path, body, name in (
        (COMPLETION, {"prompt": "x", **several, "logprobs": num_top}, "logprobs"),
        (CHAT, {"messages": USER, **several, "logprobs": True, "top_logprobs": num_top}, None),
        (COMPLETION, {"prompt": [text] * num_texts, "prompt_logprobs": -1}, "prompt_logprobs"),
    ):
        reply = client.post(path, body)
        assert (reply.status, reply.error["param"]) == (400, name or "top_logprobs")
        assert f"at most {most} in one answer" in reply.error["message"]
    client.close()


def test_as_many_log_probabilities_as_the_limit_are_given(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two completions of at most three tokens, with three each; a prompt of five, with two each.
    monkeypatch.setattr("forerun.server.params._MAX_LOGPROBS", 2 * 3 * 3 + 5 * 2)
    body: Body = {"prompt": "xyxyx", "max_tokens": 3, "n": 2, "temperature": 1}
    body |= {"logprobs": 2, "prompt_logprobs": 1}
    assert client.post(COMPLETION, body).status == 200
    reply = client.post(COMPLETION, {**body, "prompt": "xyxyxy"})
    assert (reply.status, reply.error["param"]) == (400, "prompt_logprobs")
    assert "30 log-probabilities" in reply.error["message"]


def test_only_so_many_strings_end_a_text_or_are_ruled_out(client: Client) -> None:
    valid: list[tuple[str, Any]] = [
        ("stop", ["x"] * 64),
        ("stop", "x" * 4096),
        ("bad_words", ["x"] * 1024),
    ]
    for name, value in valid:
        assert client.complete(prompt="x", **GREEDY, **{name: value}).status == 200
    for name, value in [
        ("stop", ["x"] * 65),
        ("stop", "x" * 4097),
        ("stop", ["é" * 1024, "é" * 1025]),
        ("bad_words", ["x"] * 1025),
        ("bad_words", ["x" * 20_000, "y" * 20_000]),
    ]:
        assert client.complete(prompt="x", **{name: value}).error["param"] == name


def test_names_are_limited_because_answers_and_files_repeat_them(client: Client) -> None:
    for name, most in (("request_id", 128), ("cache_salt", 256)):
        assert client.complete(prompt="x", **GREEDY, **{name: "a" * most}).status == 200
        error = client.complete(prompt="x", **{name: "a" * (most + 1)}).error
        assert error["param"] == name
    assert client.complete(prompt="x", cache_salt="").status == 200
    assert client.complete(prompt="x", cache_salt="\ud800").error["param"] == "cache_salt"


@pytest.mark.parametrize("keys", [(), ("one", "two")])
def test_outputs_are_kept_for_the_tenants_that_the_command_names(
    llm: AsyncLLM, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    memory = tmp_path / "memory"
    config = {"method": "suffix"}
    keeping = AsyncLLM(
        llm.directory, max_model_len=128, speculative_config=config, suffix_memory=memory
    )
    client = make_client(keeping, api_keys=keys)
    for key in keys or ("",):
        for salt in (None, "a", "a:b"):
            body = {"prompt": "x", **GREEDY, "cache_salt": salt}
            headers = {"authorization": f"Bearer {key}"} if key else {}
            assert client.post(COMPLETION, body, headers=headers).status == 200
    client.close()
    keeping.close()
    file = MemoryFile(memory)
    found = {summary.tenant for summary in file.summaries()}
    file.close()
    of_keys = {f"{tenant_of_key(key)}{salt}" for key in keys for salt in ("", ":a", ":a:b")}
    assert found == (of_keys if keys else {"", "a", "a:b"})


def test_log_probabilities_are_limited_unless_the_server_says_otherwise(llm: AsyncLLM) -> None:
    for most, refused in ((20, (21, -1)), (3, (4, 20, -1)), (-1, ()), (0, (1,))):
        client = make_client(llm, max_logprobs=most)
        size = llm.limits.vocab_size
        for number in (0, 1, 3, 4, 20, 21, -1):
            reply = client.complete(prompt="xy", prompt_logprobs=number, **GREEDY)
            if most == -1 or 0 <= number <= most:
                found = reply.json["choices"][0]["prompt_logprobs"][1]
                wanted = size if number == -1 else number
                assert wanted <= len(found) <= wanted + 1
            else:
                assert reply.error["param"] == "prompt_logprobs"
                assert f"at most {most}" in reply.error["message"]
        for number in refused:
            if number > 0:
                chat = client.chat(messages=USER, logprobs=True, top_logprobs=number)
                assert chat.error["param"] == "top_logprobs"
                assert client.complete(prompt="x", logprobs=number).error["param"] == "logprobs"
        client.close()


def test_a_body_makes_only_so_many_completions(client: Client) -> None:
    assert client.complete(prompt=["x"] * 1025).error["param"] == "prompt"
    assert client.complete(prompt=["x"] * 9, n=114).error["param"] == "n"
    reply = client.complete(prompt=["x"] * 8, n=128, max_tokens=1, seed=1)
    assert len(reply.json["choices"]) == 1024


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([-10_000_000], "prompt[0]"),
        ([5, 10**9], "prompt[1]"),
        ([[5], [5, -1]], "prompt[1][1]"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"echo": True}, {"echo": True, "logprobs": 1}])
def test_a_token_that_there_is_not_is_named(
    client: Client, prompt: Any, param: str, options: Body
) -> None:
    error = client.complete(prompt=prompt, **options).error
    assert (error["param"], error["code"]) == (param, "invalid_value")


def test_the_limit_on_tokens_lowers_a_default_and_never_raises_it(llm: AsyncLLM) -> None:
    for limit, expected in ((100, 16), (16, 16), (7, 7), (None, 16)):
        client = make_client(llm, max_tokens_limit=limit)
        answer = client.complete(prompt="x", ignore_eos=True).json
        assert answer["usage"]["completion_tokens"] == expected
        client.close()
