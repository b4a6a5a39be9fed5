"""What an answer has besides its texts: usage, and what is said of its prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import server_models
from server_client import Body, Client

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.settings import ServerSettings

USER = [{"role": "user", "content": "x y"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncLLM]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("answers"))
    with closing(AsyncLLM(target, max_model_len=128)) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(llm: AsyncLLM) -> Iterator[Client]:
    with closing(Client(make_app(llm, ServerSettings(log_requests=False)))) as client:
        yield client


@pytest.mark.parametrize("body", [{"prompt": "x y", "n": 2}, {"prompt": ["x", "x y z"]}])
def test_usage_so_far_is_that_of_the_chunks_own_choice(client: Client, body: Body) -> None:
    prompts = [body["prompt"]] * 2 if "n" in body else body["prompt"]
    lens = [client.post("/tokenize", {"prompt": each}).json["count"] for each in prompts]
    options = {"continuous_usage_stats": True, "include_usage": True}
    *chunks, last = client.complete(
        **body, max_tokens=5, ignore_eos=True, stream=True, stream_options=options
    ).chunks
    found: list[list[int]] = [[], []]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        usage = chunk["usage"]
        assert usage["prompt_tokens"] == lens[choice["index"]]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        found[choice["index"]].append(usage["completion_tokens"])
    assert found == [[1, 2, 3, 4, 5]] * 2
    assert last["usage"]["completion_tokens"] == 10
    assert last["usage"]["prompt_tokens"] == (lens[0] if "n" in body else sum(lens))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_is_null_until_the_last_chunk(client: Client, path: str) -> None:
    body = {"messages": USER} if "chat" in path else {"prompt": "x"}
    body |= {"max_tokens": 3, "stream": True}
    chunks = client.post(path, body).chunks
    assert not any("usage" in chunk for chunk in chunks)
    *chunks, last = client.post(path, {**body, "stream_options": {"include_usage": True}}).chunks
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert last["usage"]["completion_tokens"] == 3


def test_a_chat_tells_of_its_prompt_beside_the_choices(client: Client) -> None:
    prompt = client.post("/tokenize", {"messages": USER}).json["tokens"]
    body = {"messages": USER, "n": 2, "max_tokens": 2, "return_token_ids": True}
    answer = client.chat(**body, prompt_logprobs=1).json
    assert answer["prompt_token_ids"] == prompt
    assert len(answer["prompt_logprobs"]) == len(prompt)
    for choice in answer["choices"]:
        assert not {"prompt_token_ids", "prompt_logprobs"} & set(choice)
        assert len(choice["token_ids"]) == 2
    seen = set()
    for chunk in client.chat(**body, stream=True).chunks:
        index = chunk["choices"][0]["index"]
        assert chunk.get("prompt_token_ids") == (None if index in seen else prompt)
        seen.add(index)


def test_a_completion_tells_of_its_prompt_in_each_choice(client: Client) -> None:
    prompts = [client.post("/tokenize", {"prompt": each}).json["tokens"] for each in ("x", "y z")]
    body = {"prompt": prompts, "n": 2, "max_tokens": 2, "return_token_ids": True}
    answer = client.complete(**body, prompt_logprobs=1).json
    assert not {"prompt_token_ids", "prompt_logprobs"} & set(answer)
    for choice in answer["choices"]:
        prompt = prompts[choice["index"] // 2]
        assert choice["prompt_token_ids"] == prompt
        assert len(choice["prompt_logprobs"]) == len(prompt)
    seen = set()
    for chunk in client.complete(**body, stream=True).chunks:
        (choice,) = chunk["choices"]
        index = choice["index"]
        expected = None if index in seen else prompts[index // 2]
        assert choice.get("prompt_token_ids") == expected
        seen.add(index)


def test_a_server_may_send_the_usage_of_every_stream(llm: AsyncLLM) -> None:
    settings = ServerSettings(log_requests=False, force_include_usage=True)
    with closing(Client(make_app(llm, settings))) as client:
        *chunks, last = client.complete(prompt="x", max_tokens=3, stream=True).chunks
        assert [chunk["usage"] for chunk in chunks] == [None] * 3
        assert last["usage"]["completion_tokens"] == 3
        assert "usage" in client.complete(prompt="x", max_tokens=3).json


def test_a_server_may_give_the_template_variables(llm: AsyncLLM) -> None:
    template = "{{ a }}{{ b }}{{ reasoning_effort }}"
    defaults = {"a": "x", "b": "y", "reasoning_effort": "z"}
    settings = ServerSettings(chat_template=template, default_chat_template_kwargs=defaults)
    with closing(Client(make_app(llm, settings))) as client:
        for given, expected in (
            ({}, "xyz"),
            ({"chat_template_kwargs": {"a": "7"}}, "7yz"),
            ({"reasoning_effort": "7"}, "xy7"),
        ):
            tokens = client.post("/tokenize", {"messages": USER, **given}).json["tokens"]
            assert client.post("/detokenize", {"tokens": tokens}).json["prompt"] == expected
