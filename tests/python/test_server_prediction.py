"""OpenAI's `prediction` of chats, what is refused beside it, and the usage that it reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import server_models
from page_server import running_server
from server_client import Body, Client, assembled

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.settings import ServerSettings

NUM_TOKENS = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOOL = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server without a drafter."""
    target, _ = server_models.write_model(tmp_path_factory.mktemp("server"))
    llm = AsyncLLM(target, max_model_len=128, check_invariants=True)
    client = Client(make_app(llm, ServerSettings(log_requests=False)))
    yield client
    client.close()
    llm.close()


@pytest.fixture(scope="module")
def body(client: Client) -> Body:
    """A chat that is answered with letters, which are encoded as they were generated."""
    letters = client.post("/tokenize", {"prompt": LETTERS}).json["tokens"]
    assert len(letters) == len(LETTERS)
    messages = [{"role": "user", "content": "x y"}]
    sampling = {"temperature": 1.0, "seed": 5, "max_tokens": NUM_TOKENS}
    return {"messages": messages, "allowed_token_ids": letters, **sampling}


@pytest.fixture(scope="module")
def answer(client: Client, body: Body) -> Body:
    """The answer without a prediction."""
    found: Body = client.chat(**body).json
    return found


def text_of(answer: Body) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    assert len(text) == NUM_TOKENS
    return text


def prediction(content: Any) -> Body:
    return {"prediction": {"type": "content", "content": content}}


def counts(usage: Body) -> tuple[int, int]:
    details = usage["completion_tokens_details"]
    return details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]


def test_usage_has_no_prediction_tokens_without_one(answer: Body) -> None:
    assert counts(answer["usage"]) == (0, 0)


@pytest.mark.parametrize("is_list", [False, True], ids=["text", "parts"])
def test_the_answer_is_the_same_and_was_drafted(
    client: Client, body: Body, answer: Body, is_list: bool
) -> None:
    text = text_of(answer)
    parts = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    reply = client.chat(**body, **prediction(parts if is_list else text), include_metrics=True)
    assert reply.json["choices"] == answer["choices"]
    usage, metrics = reply.json["usage"], reply.json["metrics"]
    num_accepted, num_rejected = counts(usage)
    assert (num_accepted, num_rejected) == (metrics["num_accepted_tokens"], 0)
    assert num_accepted > 0
    assert usage["completion_tokens"] == NUM_TOKENS


def test_rejected_tokens_are_not_in_the_answer_or_its_tokens(
    client: Client, body: Body, answer: Body
) -> None:
    text = text_of(answer)
    # The first token is generated before there is a draft.
    reply = client.chat(**body, **prediction(text[0] + "é" * 20))
    assert reply.json["choices"] == answer["choices"]
    num_accepted, num_rejected = counts(reply.json["usage"])
    assert num_accepted == 0
    assert num_rejected > 0
    assert reply.json["usage"]["completion_tokens"] == NUM_TOKENS


def test_a_stream_ends_with_the_counts(client: Client, body: Body, answer: Body) -> None:
    given = {**body, **prediction(text_of(answer)), "stream": True}
    *chunks, last = client.chat(**given, stream_options={"include_usage": True}).chunks
    assert assembled(chunks)[0]["message"]["content"] == text_of(answer)
    assert len(chunks) == NUM_TOKENS
    assert counts(last["usage"])[0] > 0


def test_speculative_false_is_without_it(client: Client, body: Body, answer: Body) -> None:
    reply = client.chat(**body, **prediction(text_of(answer)), speculative=False)
    assert reply.json["choices"] == answer["choices"]
    assert counts(reply.json["usage"]) == (0, 0)


@pytest.mark.parametrize(
    ("beside", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 2}, "logprobs"),
        ({"tools": [TOOL]}, "tools"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
    ],
)
def test_what_openai_refuses_beside_it_is_refused(
    client: Client, body: Body, beside: Body, param: str
) -> None:
    reply = client.chat(**body, **beside, **prediction("x"))
    assert (reply.status, reply.error["param"]) == (400, param)
    assert "beside a prediction" in reply.error["message"]


def test_neutral_values_are_accepted_beside_it(client: Client, body: Body) -> None:
    beside: Body = {"n": 1, "logprobs": False, "tools": [], "presence_penalty": 0}
    beside |= {"frequency_penalty": -0.5, "max_completion_tokens": 2}
    assert client.chat(**body, **beside, **prediction("x")).status == 200


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ("\ud800", "prediction.content"),
        ("x" * 129, "prediction"),
        ([{"type": "text", "text": 5}], "prediction.content"),
        ([{"type": "image_url"}], "prediction.content"),
    ],
)
def test_errors_name_what_is_wrong(client: Client, body: Body, content: Any, param: str) -> None:
    reply = client.chat(**body, **prediction(content))
    assert (reply.status, reply.error["param"]) == (400, param)


def test_openais_client_sends_it_and_reads_the_counts(
    tmp_path: Path, body: Body, answer: Body
) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    target, _ = server_models.write_model(tmp_path)
    fields = {name: value for name, value in body.items() if name != "allowed_token_ids"}
    extra = {"allowed_token_ids": body["allowed_token_ids"]}
    with (
        running_server(target, options={}, log_requests=False) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
    ):
        model = client.models.list().data[0].id
        completion = client.chat.completions.create(
            model=model, **fields, **prediction(text_of(answer)), extra_body=extra
        )
    assert completion.choices[0].message.content == text_of(answer)
    details = completion.usage.completion_tokens_details
    assert details.accepted_prediction_tokens > 0
    assert details.rejected_prediction_tokens == 0
