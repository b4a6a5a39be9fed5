"""OpenAI's Python client against the server, as its users call it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import pydantic
import pytest
import server_models
from page_server import running_server

openai = pytest.importorskip("openai", reason="openai is not installed")

README = importlib.metadata.metadata("openai").get_payload()
EXAMPLES = [
    code
    for code in re.findall(r"```(?:py|python)\n(.*?)```", str(README), re.DOTALL)
    if "chat.completions" in code and "Azure" not in code and "workload_identity" not in code
]
EXAMPLE = """
from openai import OpenAI
if True:
    with OpenAI() as client:
{}
"""
ASYNC_EXAMPLE = """
import asyncio
from openai import AsyncOpenAI
async def main():
    async with AsyncOpenAI() as client:
{}
asyncio.run(main())
"""
USER = [{"role": "user", "content": "x y"}]
CHAT: dict[str, Any] = {"model": "small", "messages": USER}
SCRIPTED: dict[str, Any] = {**CHAT, "temperature": 0, "extra_body": {"vllm_xargs": {"follow": 30}}}
SLOW = {"vllm_xargs": {"seconds": 0.02}, "ignore_eos": True}


class Sum(pydantic.BaseModel):
    a: Literal[1, 2]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("clients"))
    names = ("small", *re.findall(r'model="([^"]+)"', "".join(EXAMPLES)))
    with running_server(
        target,
        options={"logits_processors": [server_models.FollowsScript], "max_num_seqs": 8},
        api_keys=("key",),
        served_model_names=tuple(dict.fromkeys(names)),
        log_requests=False,
    ) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="key") as client:
        yield client


def content_of(completion: Any) -> dict[str, Any]:
    """What must not depend on how it came, of a typed answer."""
    dumped: dict[str, Any] = completion.model_dump()
    for choice in dumped["choices"]:
        for call in choice["message"]["tool_calls"] or ():
            del call["id"]
            call.pop("index", None)
    details = dumped["usage"].pop("prompt_tokens_details")
    assert details["cached_tokens"] >= 0
    return {name: dumped[name] for name in ("choices", "model", "usage")}


def num_running(url: str) -> float:
    text = httpx2.get(f"{url}/metrics", headers={"authorization": "Bearer key"}).text
    line = next(line for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
    return float(line.split()[-1])


def wait_until_idle(url: str) -> None:
    end = time.monotonic() + 60
    while num_running(url) > 0:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_models_are_listed_and_retrieved(client: Any) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "small"
    assert client.models.retrieve("small").owned_by == "forerun"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("more", [{"n": 2}, {"logprobs": True, "top_logprobs": 2}])
def test_a_streamed_chat_is_the_chat_in_one_piece(client: Any, more: dict[str, Any]) -> None:
    options = {**CHAT, "seed": 5, **more}
    whole = client.chat.completions.parse(**options)
    options["stream_options"] = {"include_usage": True}
    with client.chat.completions.stream(**options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert content_of(final) == content_of(whole)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert ("logprobs.content.delta" in kinds) == ("logprobs" in more)
    assert whole._request_id


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_and_reasoning_are_typed(client: Any, stream: bool) -> None:
    tools = [openai.pydantic_function_tool(Sum, name="add")]
    options = {**SCRIPTED, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(**options) as events:
            kinds = [event.type for event in events]
            completion = events.get_final_completion()
        assert kinds.count("tool_calls.function.arguments.done") == 1
    else:
        completion = client.chat.completions.parse(**options)
    (choice,) = completion.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "add"
    assert call.function.parsed_arguments == Sum(a=1)
    assert choice.message.reasoning_content == "let me seeé or so"


def test_a_conversation_with_a_tool_goes_on(client: Any) -> None:
    options = {**SCRIPTED, "tools": [{"type": "function", "function": {"name": "add"}}]}
    first = client.chat.completions.create(**options).choices[0].message
    (call,) = first.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    options["messages"] = [*USER, first, result]  # the client's own object is sent back
    assert client.chat.completions.create(**options).choices[0].finish_reason == "tool_calls"


def test_structured_outputs_are_parsed(client: Any) -> None:
    options = {**SCRIPTED, "response_format": Sum}
    message = client.chat.completions.parse(**options).choices[0].message
    assert message.parsed in (Sum(a=1), Sum(a=2))
    with client.chat.completions.stream(**options) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == message.parsed
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**options, max_completion_tokens=3)


def test_completions_take_several_prompts(client: Any) -> None:
    options = {"model": "small", "max_tokens": 5, "seed": 1}
    answer = client.completions.create(prompt=["x", "y z"], echo=True, logprobs=2, **options)
    first, second = answer.choices
    assert (first.text[0], second.text[:3]) == ("x", "y z")
    assert len(first.logprobs.tokens) == 1 + 5
    chunks = list(client.completions.create(prompt=["x", "y z"], stream=True, **options))
    for index, choice in enumerate(answer.choices):
        parts = [part for chunk in chunks for part in chunk.choices if part.index == index]
        assert len(parts) == 5
        assert choice.text.endswith("".join(part.text for part in parts))


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"temperature": -1}, "BadRequestError", "invalid_value", "temperature"),
        ({"model": "other"}, "NotFoundError", "model_not_found", "model"),
        ({"store": True}, "BadRequestError", "invalid_value", "store"),
        ({"messages": []}, "BadRequestError", "invalid_value", "messages"),
        ({"extra_body": {"no": 1}}, "BadRequestError", "unknown_parameter", "no"),
        (
            {"messages": [{"role": "user", "content": "x" * 300}]},
            "BadRequestError",
            "context_length_exceeded",
            "messages",
        ),
    ],
)
def test_refusals_have_types(
    client: Any, change: dict[str, Any], kind: str, code: str, param: str
) -> None:
    with pytest.raises(getattr(openai, kind)) as error:
        client.chat.completions.create(**{**CHAT, **change})
    assert (error.value.code, error.value.param) == (code, param)
    assert error.value.request_id
    if code == "context_length_exceeded":
        # LiteLLM and others know the error by these words.
        assert "This model's maximum context length is 256 tokens" in str(error.value)


def test_what_is_not_served_and_a_wrong_key_are_refused(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model="small", input="x")
    assert error.value.code == "unsupported_endpoint"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(**CHAT)


def test_a_failure_in_a_stream_is_raised_after_what_came_before(client: Any) -> None:
    body = {"vllm_xargs": {"fail_after": 3}, "ignore_eos": True}
    stream = client.chat.completions.create(**CHAT, stream=True, extra_body=body)
    chunks = []
    with pytest.raises(openai.APIError) as error:
        chunks.extend(stream)
    assert error.value.code == "request_failed"
    assert len(chunks) == 3


def test_a_stream_that_is_left_ends_its_request(client: Any, url: str) -> None:
    with client.chat.completions.create(**CHAT, stream=True, extra_body=SLOW) as stream:
        next(stream)
        assert num_running(url) == 1
    wait_until_idle(url)


def test_a_request_that_times_out_at_the_client_ends(client: Any, url: str) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3, max_retries=0).chat.completions.create(
            **CHAT, extra_body=SLOW
        )
    wait_until_idle(url)


def test_asynchronous_requests_share_the_server(url: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key") as client:
            create = client.chat.completions.create

            async def text_of(seed: int) -> str:
                stream = await create(**CHAT, seed=seed, max_tokens=20, stream=True)
                chunks = [chunk async for chunk in stream]
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

            texts = await asyncio.gather(*(text_of(seed) for seed in range(12)))
            whole = [await create(**CHAT, seed=seed, max_tokens=20) for seed in range(12)]
            assert texts == [answer.choices[0].message.content for answer in whole]
            assert len(set(texts)) > 1
            slow = asyncio.create_task(create(**CHAT, extra_body=SLOW))
            await asyncio.sleep(0.2)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow

    asyncio.run(run())
    wait_until_idle(url)


def test_the_answer_can_be_read_raw(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(**CHAT, max_tokens=2)
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    options = {**CHAT, "max_tokens": 2, "stream": True}
    with client.chat.completions.with_streaming_response.create(**options) as response:
        lines = [line for line in response.iter_lines() if line]
    assert len(lines) == 2 + 1
    assert lines[-1] == "data: [DONE]"


def test_the_clients_own_examples_are_found() -> None:
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_the_clients_documentation_runs(
    number: int, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    code = EXAMPLES[number]
    if "DefaultAioHttpClient" in code:
        pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    # Some leave it to the reader to make the client.
    body = "".join(f"        {line}\n" for line in code.splitlines())
    if "OpenAI(" not in code and "await " in code:
        code = ASYNC_EXAMPLE.format(body)
    elif "OpenAI(" not in code:
        code = EXAMPLE.format(body)
    scope: dict[str, Any] = {}
    exec(compile(code, "README", "exec"), scope)
    if "print(" in code and "except" not in code:
        assert capsys.readouterr().out.strip()


def test_the_javascript_client_gets_what_pythons_does(client: Any, url: str) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    found = subprocess.run(
        ["node", "-p", "require.resolve('openai')"], capture_output=True, cwd=Path.home()
    )
    if found.returncode:
        pytest.skip("node has no package openai (npm install openai; NODE_PATH)")
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    extra = {"vllm_xargs": {"follow": 30}, "temperature": 0}
    body = json.dumps({**CHAT, **extra, "tools": [tool]})
    script = Path(__file__).with_name("openai_client.cjs")
    process = subprocess.run(
        ["node", script, url, "key", body], capture_output=True, text=True, timeout=60
    )
    assert not process.stderr
    got = json.loads(process.stdout)
    create = client.chat.completions.create
    message = create(**SCRIPTED, tools=[tool]).choices[0].message
    assert got["models"] == [model.id for model in client.models.list()]
    for name in ("whole", "streamed"):
        assert got[name]["finish_reason"] == "tool_calls"
        assert got[name]["message"]["content"] == message.content
        (call,) = got[name]["message"]["tool_calls"]
        assert call["function"]["arguments"] == message.tool_calls[0].function.arguments
    assert got["kinds"] == ["chunk", "content"]
    content = create(**SCRIPTED).choices[0].message.content
    assert got["deltas"] == got["content"] == content
    assert got["calls"] == [{"a": 12}] * 2
    assert got["parsed"] in ({"a": 1}, {"a": 2})
    assert (got["num_completions"], got["has_id"], got["answer"]) == (2, True, "string")
    refusal = {"status": 400, "code": "invalid_value", "param": "temperature", "has_id": True}
    assert got["invalid"] == {"kind": "BadRequestError", **refusal}
    assert (got["no_model"]["kind"], got["no_key"]["kind"]) == (
        "NotFoundError",
        "AuthenticationError",
    )
    assert (got["in_stream"]["kind"], got["in_stream"]["code"]) == ("APIError", "request_failed")
    wait_until_idle(url)


def test_a_prediction_changes_no_text_and_is_counted(client: Any, url: str) -> None:
    create = client.chat.completions.create
    # Text that is tokenized as it was generated.
    answer = client.post(f"{url}/tokenize", cast_to=object, body={"prompt": "abcd"})
    letters = {"allowed_token_ids": answer["tokens"]}
    options: dict[str, Any] = {**CHAT, "max_tokens": 40, "seed": 3, "extra_body": letters}
    plain = create(**options)
    text = plain.choices[0].message.content
    options["prediction"] = {"type": "content", "content": text}
    whole = create(**options)
    assert whole.choices[0].message.content == text
    details = whole.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 0
    assert details.rejected_prediction_tokens >= 0
    chunks = list(create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens_details.accepted_prediction_tokens > 0
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == text
