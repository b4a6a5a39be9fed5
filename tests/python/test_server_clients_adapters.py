"""LangChain's and LiteLLM's adapters for OpenAI's API against the server."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
import server_models
from page_server import running_server

# Their imports take seconds, and warn.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]

MESSAGES = [{"role": "user", "content": "x y"}]
FOLLOW = {"vllm_xargs": {"follow": 30}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


class Sum(pydantic.BaseModel):
    """A sum."""

    a: Literal[1, 2]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("adapters"))
    with running_server(
        target,
        options={"logits_processors": [server_models.FollowsScript]},
        api_keys=("key",),
        served_model_names=("small",),
        log_requests=False,
    ) as url:
        yield f"{url}/v1"


@pytest.fixture
def langchain(url: str) -> Any:
    module = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    return module.ChatOpenAI(
        base_url=url, api_key="key", model="small", temperature=0, extra_body=FOLLOW
    )


@pytest.fixture
def litellm(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    monkeypatch.setattr(litellm, "api_base", url)
    monkeypatch.setattr(litellm, "api_key", "key")
    yield litellm
    # It leaves its event loop open; later tests would fail for it.
    asyncio.set_event_loop(None)
    gc.collect()


def test_langchain_invokes_streams_and_batches(langchain: Any) -> None:
    whole = langchain.invoke("x y")
    assert "done." in whole.content
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata["output_tokens"] > 0
    chunks = list(langchain.stream("x y", stream_usage=True))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.content == whole.content
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert [answer.content for answer in langchain.batch(["x y", "x y"])] == [whole.content] * 2


def test_langchain_streams_asynchronously(langchain: Any) -> None:
    async def run() -> tuple[str, str]:
        streamed = [chunk.content async for chunk in langchain.astream("x y")]
        return "".join(streamed), (await langchain.ainvoke("x y")).content

    streamed, whole = asyncio.run(run())
    assert streamed == whole


def test_langchain_binds_tools(langchain: Any) -> None:
    bound = langchain.bind_tools([TOOL])
    whole = bound.invoke("x y")
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 12})
    chunks = list(bound.stream("x y"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [("add", {"a": 12})]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchains_structured_output_is_typed(langchain: Any, method: str) -> None:
    answer = langchain.with_structured_output(Sum, method=method).invoke("x y")
    assert answer in (Sum(a=1), Sum(a=2))


def test_langchain_raises_the_clients_errors(langchain: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as error:
        langchain.bind(presence_penalty=5).invoke("x")
    assert error.value.param == "presence_penalty"


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_answers_streamed_and_whole(litellm: Any, url: str, provider: str) -> None:
    options = {"model": f"{provider}/small", "messages": MESSAGES, "temperature": 0, **FOLLOW}
    options |= {"api_base": url, "api_key": "key"}
    whole = litellm.completion(**options).choices[0].message
    assert "done." in whole.content
    assert whole.reasoning_content == "let me seeé or so"
    chunks = list(litellm.completion(**options, stream=True))
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content == whole.content
    called = litellm.completion(**options, tools=[TOOL]).choices[0]
    assert called.finish_reason == "tool_calls"
    assert called.message.tool_calls[0].function.arguments == '{"a": 12}'
    parsed = litellm.completion(**options, response_format=Sum).choices[0].message.content
    assert Sum.model_validate_json(parsed).a in (1, 2)


def test_litellm_answers_asynchronously(litellm: Any) -> None:
    options = {"model": "openai/small", "messages": MESSAGES, "temperature": 0, **FOLLOW}

    async def run() -> list[str]:
        answers = await asyncio.gather(*(litellm.acompletion(**options) for _ in range(3)))
        stream = await litellm.acompletion(**options, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return [*(answer.choices[0].message.content for answer in answers), "".join(pieces)]

    assert len(set(asyncio.run(run()))) == 1


def test_litellm_completes_texts(litellm: Any) -> None:
    options = {"model": "text-completion-openai/small", "prompt": "x", "max_tokens": 4}
    assert litellm.text_completion(**options).usage.completion_tokens == 4


def test_litellm_maps_errors(litellm: Any) -> None:
    options = {"model": "openai/small", "messages": MESSAGES}
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**options, temperature=-1)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**options, api_key="wrong")
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model="openai/small", messages=[{"role": "user", "content": "x" * 300}])


REAL = [{"role": "user", "content": "Name three colours of the rainbow."}]


class Colour(pydantic.BaseModel):
    name: Literal["red", "green", "blue"]
    is_warm: bool


def test_clients_of_a_real_model_get_the_same_text(smollm_dir: Path) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with (
        running_server(smollm_dir, served_model_names=("smol",), log_requests=False) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        create = client.chat.completions.create
        options: dict[str, Any] = {"model": "smol", "messages": REAL, "temperature": 0}
        options["max_tokens"] = 40
        plain = create(**options, extra_body={"speculative": False}).choices[0].message.content
        assert create(**options).choices[0].message.content == plain
        chunks = list(create(**options, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain
        options["response_format"] = Colour
        parsed = client.chat.completions.parse(**options).choices[0].message.parsed
        assert isinstance(parsed, Colour)
