"""What the server answers: OpenAI's parameters, vLLM's and its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import server_models
from server_client import Body, Client, Reply, assembled

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.settings import ServerSettings
from forerun.version import package_version

USER = [{"role": "user", "content": "x y"}]
GREEDY = {"temperature": 0, "max_tokens": 12}
SCRIPTED = {"temperature": 0, "vllm_xargs": {"follow": 30.0}}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
NewClient = Callable[..., Client]
BARE = {"type": "function", "function": {"name": "b"}}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncLLM]:
    target, _ = server_models.write_model(tmp_path_factory.mktemp("server"))
    llm = AsyncLLM(
        target,
        speculative_config={"method": "suffix"},
        max_model_len=128,
        check_invariants=True,
        logits_processors=[server_models.FollowsScript],
    )
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def new_client(llm: AsyncLLM) -> Iterator[NewClient]:
    """Makes a client of a model, given the server's settings."""
    with ExitStack() as clients:

        def make(model: AsyncLLM = llm, **settings: Any) -> Client:
            app = make_app(model, ServerSettings(log_requests=False, **settings))
            return clients.enter_context(closing(Client(app)))

        yield make


@pytest.fixture(scope="module")
def client(new_client: NewClient) -> Client:
    return new_client(served_model_names=("small", "alias"))


def text_of(reply: Any) -> str:
    assert reply.status == 200, reply.text
    choice = reply.json["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def test_a_chat_is_answered_in_openais_form(client: Client) -> None:
    answer = client.chat(messages=USER, model="alias", **GREEDY).json
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "alias"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


def test_a_stream_has_one_chunk_for_each_token_and_makes_the_same_answer(client: Client) -> None:
    body = {"messages": USER, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
    body |= {"temperature": 1.0, "seed": 5, "n": 2, "max_tokens": 30}
    whole = client.chat(**body).json
    streamed = client.chat(**body, stream=True, stream_options={"include_usage": True}).chunks
    *chunks, last = streamed
    assert last["choices"] == []
    assert last["usage"] == {**whole["usage"], "prompt_tokens_details": {"cached_tokens": 0}} | {
        "prompt_tokens_details": last["usage"]["prompt_tokens_details"]
    }
    for index, choice in assembled(chunks).items():
        expected = whole["choices"][index]
        message = {key: value for key, value in expected["message"].items() if value is not None}
        assert {"content": "", **choice["message"]} == {"content": "", **message}
        assert {**choice, "message": 0} == {**expected, "message": 0}
    parts = [part for chunk in chunks for part in chunk["choices"]]
    assert all(len(part["token_ids"]) == 1 for part in parts)
    assert all(len(part["logprobs"]["content"]) == 1 for part in parts)
    assert {chunk["object"] for chunk in streamed} == {"chat.completion.chunk"}


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 12])
def test_stream_interval_coalesces_chunks_after_the_first(
    new_client: NewClient, num_tokens: int
) -> None:
    client = new_client(stream_interval=3)
    body = {"prompt": "x", "temperature": 0, "max_tokens": num_tokens, "return_token_ids": True}
    chunks = client.complete(**body, stream=True).chunks
    sizes = [len(chunk["choices"][0]["token_ids"]) for chunk in chunks]
    rest = num_tokens - 1
    assert sizes == [1, *[3] * (rest // 3), *[rest % 3] * (rest % 3 > 0)]
    assert assembled(chunks)[0]["text"] == text_of(client.complete(**body))


@pytest.mark.parametrize("stream_interval", [1, 5])
def test_reasoning_and_tool_calls_are_separated_from_the_content(
    new_client: NewClient, stream_interval: int
) -> None:
    client = new_client(stream_interval=stream_interval)
    options = {"messages": USER, "tools": [ADD], "max_tokens": 60, **SCRIPTED}
    whole = client.chat(**options).json
    message = (choice := whole["choices"][0])["message"]
    assert message["reasoning_content"] == message["reasoning"] == "let me seeé or so"
    assert message["content"] == "It is 🙂done. Then"
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 12}'}
    assert call["type"] == "function"
    assert choice["finish_reason"] == "tool_calls"
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 8
    usage = {"include_usage": True}
    chunks = client.chat(**options, stream=True, stream_options=usage).chunks
    assert chunks[-1]["usage"] == whole["usage"]
    streamed = assembled(chunks)[0]["message"]
    streamed["tool_calls"][0]["id"] = call["id"]
    assert streamed == {key: value for key, value in message.items() if value is not None}
    without = client.chat(**options, include_reasoning=False).json["choices"][0]["message"]
    assert "reasoning" not in without
    assert without["content"] == message["content"]


def test_tools_that_may_not_be_called_leave_the_text_as_it_is(client: Client) -> None:
    for options in ({}, {"tools": [ADD], "tool_choice": "none"}):
        reply = client.chat(messages=USER, **options, max_tokens=60, **SCRIPTED)
        (choice,) = reply.json["choices"]
        assert "<tool_call>" in choice["message"]["content"]
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_demanded_call_is_forced(client: Client, choice: Any) -> None:
    tools = [ADD] if choice == "required" else [BARE, ADD]
    # Nothing but the grammar makes this model call the tool at once.
    options: Body = {"messages": USER, "max_tokens": 90, **SCRIPTED, "parallel_tool_calls": False}
    free = client.chat(**options, tools=tools).json["choices"][0]["message"]
    assert free["content"].startswith("It is 🙂")
    (found,) = client.chat(**options, tools=tools, tool_choice=choice).json["choices"]
    assert found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    assert set(json.loads(call["function"]["arguments"])) == {"a"}


def test_n_choices_have_seeds_of_their_own(client: Client) -> None:
    body = {"messages": USER, "temperature": 1.0, "max_tokens": 20}
    answer = client.chat(**body, seed=3, n=3).json
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    alone = [text_of(client.chat(**body, seed=3 + index)) for index in range(3)]
    assert texts == alone
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 60


def test_log_probabilities_of_a_chat(client: Client) -> None:
    reply = client.chat(messages=USER, logprobs=True, top_logprobs=3, **GREEDY)
    content = reply.json["choices"][0]["logprobs"]["content"]
    assert len(content) == 12
    for entry in content:
        top = entry["top_logprobs"]
        assert len(top) == 3
        assert {key: entry[key] for key in top[0]} == top[0], "greedy takes the first"
        assert [each["logprob"] for each in top] == sorted([e["logprob"] for e in top])[::-1]
    joined = b"".join(bytes(entry["bytes"]) for entry in content)
    assert joined.decode(errors="replace").startswith(text_of(reply)[:3])
    few = client.chat(messages=USER, logprobs=True, **GREEDY).json["choices"][0]["logprobs"]
    assert all(entry["top_logprobs"] == [] for entry in few["content"])
    named = client.chat(messages=USER, logprobs=True, return_tokens_as_token_ids=True, **GREEDY)
    first = named.json["choices"][0]["logprobs"]["content"][0]["token"]
    assert first.startswith("token_id:")


def test_log_probabilities_and_echo_of_completions(client: Client) -> None:
    prompts = ["xy", "é7"]
    answer = client.complete(prompt=prompts, echo=True, logprobs=1, **GREEDY).json
    plain = client.complete(prompt=prompts, **GREEDY).json
    assert answer["object"] == "text_completion"
    for choice, bare, prompt in zip(answer["choices"], plain["choices"], prompts, strict=True):
        assert choice["text"] == prompt + bare["text"]
        found = choice["logprobs"]
        assert {len(column) for column in found.values()} == {len(prompt.encode()) + 12}
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        assert all(value <= 0 for value in found["token_logprobs"][1:])
        assert found["text_offset"][0] == 0
        for offset, token in zip(found["text_offset"], found["tokens"], strict=True):
            if "\ufffd" not in token and "<|im_end|>" not in token:
                # Half a character that this token proves wrong is before it.
                assert choice["text"].find(token, offset) - offset in (0, 1)
    reported = client.complete(prompt="xy", prompt_logprobs=0, **GREEDY).json["choices"][0]
    assert reported["prompt_logprobs"][0] is None
    assert len(reported["prompt_logprobs"]) == 2


def test_an_event_is_one_line_for_every_reader_of_lines(client: Client) -> None:
    prompt = "a\u2028b\u2029c\x85d"
    reply = client.complete(prompt=prompt, echo=True, stream=True, **GREEDY)
    assert assembled(reply.chunks)[0]["text"].startswith(prompt)
    assert reply.text.splitlines() == reply.text.split("\n")[:-1]


def test_token_prompts_and_token_ids(client: Client) -> None:
    tokens = client.post("/tokenize", {"prompt": "xy é"}).json["tokens"]
    by_ids = client.complete(prompt=tokens, return_token_ids=True, **GREEDY).json["choices"][0]
    assert by_ids["prompt_token_ids"] == tokens
    assert by_ids["text"] == text_of(client.complete(prompt="xy é", **GREEDY))
    assert len(by_ids["token_ids"]) == 12
    several = client.complete(prompt=[tokens, tokens[:1]], **GREEDY).json["choices"]
    assert several[0]["text"] == by_ids["text"]


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"response_format": {"type": "json_object"}}, lambda text: json.loads(text) is not None),
        ({"guided_choice": ["ab", "x y"]}, lambda text: text in ("ab", "x y")),
        ({"guided_regex": "[ab]{3}"}, lambda text: len(text) == 3),
        ({"structured_outputs": {"choice": ["é"]}}, lambda text: text == "é"),
        ({"guided_grammar": 'start: "ab" | "ba"'}, lambda text: text in ("ab", "ba")),
        ({"guided_json": {"enum": ["x"]}}, lambda text: json.loads(text) == "x"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"enum": [7, "a"]}},
                }
            },
            lambda text: json.loads(text) in (7, "a"),
        ),
        ({"stop": ["me"], **SCRIPTED}, lambda text: text.endswith("let ")),
        (
            {"stop": "me", "include_stop_str_in_output": True, **SCRIPTED},
            lambda text: text.endswith("let me"),
        ),
        ({"allowed_token_ids": [7]}, lambda text: text == text[:1] * len(text)),
        ({"min_tokens": 5, "max_tokens": 5}, lambda text: True),
    ],
)
def test_restrictions_and_stops(client: Client, options: Body, check: Any) -> None:
    reply = client.complete(prompt="x", **{"temperature": 0, "max_tokens": 60, **options})
    assert check(text_of(reply)), text_of(reply)


def test_requests_choose_how_they_are_drafted(client: Client) -> None:
    body = {"prompt": "7 7 7 7 7 7 7 7 7", **SCRIPTED, "max_tokens": 40, "include_metrics": True}
    client.complete(**body)
    drafted = client.complete(**body).json
    plain = client.complete(**body, speculative=False).json
    short = client.complete(**body, max_draft_tokens=1).json
    assert drafted["choices"] == plain["choices"] == short["choices"]
    assert drafted["metrics"]["num_accepted_tokens"] > 10
    assert drafted["metrics"]["tokens_per_target_pass"] > 2
    assert drafted["metrics"]["total_seconds"] >= drafted["metrics"]["first_token_seconds"] > 0
    assert plain["metrics"]["num_drafts"] == 0
    assert short["metrics"]["num_drafts"] >= short["metrics"]["num_draft_tokens"] > 0
    assert "metrics" not in client.complete(prompt="x", **GREEDY).json
    last = client.complete(**body, stream=True).chunks[-1]
    assert last["metrics"]["num_accepted_tokens"] > 10


def test_chunks_say_which_tokens_were_drafted(new_client: NewClient) -> None:
    client = new_client(stream_interval=4)
    body = {"prompt": "7 7 7 7 7 7 7 7", **SCRIPTED, "max_tokens": 30, "include_metrics": True}
    client.complete(**body)
    options = {"include_drafts": True}
    *chunks, last = client.complete(**body, stream=True, stream_options=options).chunks
    drafted = [chunk["forerun"]["drafted"] for chunk in chunks]
    assert len(drafted) == last["usage"]["completion_tokens"]
    assert sum(drafted) == last["metrics"]["num_accepted_tokens"] > 0


def test_usage_may_come_with_every_chunk(client: Client) -> None:
    options = {"continuous_usage_stats": True}
    chunks = client.complete(prompt="xy", **GREEDY, stream=True, stream_options=options).chunks
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [*range(1, 13)]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {2}


def test_cached_tokens_are_reported_for_equal_salts_alone(client: Client) -> None:
    def num_cached(**body: Any) -> int:
        usage = client.complete(prompt="a b c d e f g " * 4, **GREEDY, **body).json["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert num_cached(cache_salt="one") == 0
    assert num_cached(cache_salt="one") >= 32
    assert num_cached(cache_salt="two") == 0
    assert num_cached() == 0


def test_messages_are_rendered_as_the_template_says(client: Client) -> None:
    def tokens(**body: Any) -> list[int]:
        found = client.post("/tokenize", body).json
        assert found["count"] == len(found["tokens"])
        return found["tokens"]

    parts = [{"role": "user", "content": [{"type": "text", "text": "x y"}]}]
    assert tokens(messages=USER) == tokens(messages=parts)
    thinking = tokens(messages=USER, chat_template_kwargs={"enable_thinking": True})
    assert thinking[: len(tokens(messages=USER))] == tokens(messages=USER)
    assert len(thinking) == len(tokens(messages=USER)) + 1
    continued = tokens(messages=USER, continue_final_message=True)
    assert continued == tokens(messages=USER)[:-1]
    named = {"role": "developer", "content": "x"}
    system = {"role": "system", "content": "x"}
    assert tokens(messages=[named, *USER]) == tokens(messages=[system, *USER])
    assert (
        client.chat(messages=[named, *USER], **GREEDY).json["choices"]
        == (client.chat(messages=[system, *USER], **GREEDY).json["choices"])
    )


def test_reasoning_that_the_prompt_begins_is_recognized(client: Client) -> None:
    options = {"chat_template_kwargs": {"enable_thinking": True}, "max_tokens": 60}
    # The script begins with the mark: without it the model goes on as after a prompt.
    reply = client.chat(messages=USER, **options, **SCRIPTED, logit_bias={"1": -100})
    message = reply.json["choices"][0]["message"]
    assert message["reasoning"] == "let me seeé or so"
    restricted = {"response_format": {"type": "json_object"}, "guided_regex": None}
    reply = client.chat(messages=USER, **options, **SCRIPTED, **restricted)
    message = reply.json["choices"][0]["message"]
    assert message["reasoning"] == "let me seeé or so"
    assert message["content"].startswith("{"), "the answer alone is restricted"


def test_texts_become_tokens_and_back(client: Client) -> None:
    found = client.post("/tokenize", {"prompt": "é", "return_token_strs": True}).json
    assert found["token_strs"] == ["Ã", "©"]
    assert found["max_model_len"] == 128
    assert client.post("/detokenize", {"tokens": found["tokens"]}).json == {"prompt": "é"}


def test_models_health_and_version(client: Client) -> None:
    listed = client.get("/v1/models").json
    assert [card["id"] for card in listed["data"]] == ["small", "alias"]
    assert client.get("/v1/models/small").json == listed["data"][0]
    assert client.get("/v1/models/other").error["code"] == "model_not_found"
    assert client.get("/health").status == 200
    for path in ("/health", "/"):
        reply = client.run(client.call("HEAD", path))
        assert (reply.status, reply.text) == (200, "")
    assert client.get("/version").json == {"version": package_version()}


def test_a_request_id_names_the_answer(client: Client) -> None:
    assert client.chat(messages=USER, request_id="mine", **GREEDY).json["id"] == "chatcmpl-mine"
    reply = client.post("/v1/completions", {"prompt": "x"}, headers={"x-request-id": "theirs"})
    assert reply.json["id"] == "cmpl-theirs"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/chat/completions", {"messages": USER, "stream": True}),
        ("/v1/completions", {"prompt": "x", "stream": True}),
        ("/v1/completions", {"prompt": ["x", "y"], "stream": True}),
        ("/v1/completions", {"prompt": ["x", "y"], "n": 2}),
    ],
)
@pytest.mark.parametrize("num_parts", [0, 3])
def test_a_client_that_leaves_ends_its_requests(
    client: Client, llm: AsyncLLM, path: str, body: Body, num_parts: int
) -> None:
    endless = {**body, "max_tokens": 110, "ignore_eos": True, "vllm_xargs": {"seconds": 0.005}}
    before = llm.metrics()
    client.leave(path, endless, num_parts if body.get("stream") else 0)
    assert text_of(client.complete(prompt="x", **GREEDY)) is not None
    after = llm.metrics()
    num_aborted = after.num_finished_by_reason["abort"] - before.num_finished_by_reason["abort"]
    assert num_aborted > 0
    assert after.num_running_requests == 0
    assert after.num_held_blocks == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_may_leave_before_the_first_token(client: Client, stream: bool) -> None:
    slow = {"messages": USER, "stream": stream, "vllm_xargs": {"seconds": 0.2}}
    assert client.leave("/v1/chat/completions", slow, 0) == 499


def test_a_stream_begins_before_a_token_that_takes_long(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"prompt": "x", "temperature": 0, "max_tokens": 2}
    quick = client.complete(**options, stream=True)
    assert client.complete(**options, vllm_xargs={"fail_after": 0}, stream=True).status == 500
    monkeypatch.setattr("forerun.server.sse._PATIENCE_SECONDS", 0.05)
    slow = client.complete(**options, vllm_xargs={"seconds": 0.3}, stream=True)
    comments = [part for part in slow.text.split("\n\n") if part.startswith(":")]
    assert len(comments) >= 2
    rest = slow.text.removeprefix("".join(f"{comment}\n\n" for comment in comments))
    assert [chunk["choices"] for chunk in Reply(200, slow.headers, rest).chunks] == [
        chunk["choices"] for chunk in quick.chunks
    ]
    failing = {"seconds": 0.3, "fail_after": 0}
    late = client.complete(**options, vllm_xargs=failing, stream=True)
    assert late.status == 200
    *_, event, done, end = late.text.split("\n\n")
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "request_failed"
    assert (done, end) == ("data: [DONE]", "")
    slow_body = {**options, "max_tokens": 100, "vllm_xargs": {"seconds": 0.3}, "stream": True}
    assert client.leave("/v1/completions", slow_body, 2) == 200, "while it waits"


def test_the_models_own_recommendations_are_defaults(tmp_path: Path, new_client: NewClient) -> None:
    target, _ = server_models.write_model(tmp_path)
    (target / "generation_config.json").write_text('{"temperature": 0, "top_k": 1}')
    llm = AsyncLLM(target, max_model_len=128)
    client = new_client(llm)
    texts = {text_of(client.complete(prompt="x", seed=seed, max_tokens=9)) for seed in range(4)}
    assert len(texts) == 1
    texts = {
        text_of(client.complete(prompt="x", seed=seed, max_tokens=9, temperature=1.5, top_k=0))
        for seed in range(4)
    }
    assert len(texts) > 1
    llm.close()


def test_the_limit_on_tokens(new_client: NewClient) -> None:
    client = new_client(max_tokens_limit=7)
    assert client.complete(prompt="x", max_tokens=8).error["param"] == "max_tokens"
    error = client.chat(messages=USER, max_completion_tokens=8).error
    assert error["param"] == "max_completion_tokens"
    assert client.chat(messages=USER, ignore_eos=True).json["usage"]["completion_tokens"] == 7


def test_a_full_queue_refuses_more_requests(tmp_path: Path, new_client: NewClient) -> None:
    target, _ = server_models.write_model(tmp_path)
    llm = AsyncLLM(
        target,
        max_model_len=128,
        max_num_seqs=1,
        max_waiting_requests=1,
        logits_processors=[server_models.FollowsScript],
    )
    client = new_client(llm)
    slow = {"messages": USER, "max_tokens": 5, "vllm_xargs": {"seconds": 0.02}}
    calls = [("/v1/chat/completions", {**slow, "stream": index % 2 == 0}) for index in range(6)]
    replies = client.post_all(calls)
    assert sorted(reply.status for reply in replies) == [200, 200, 503, 503, 503, 503]
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.error["code"] for reply in refused} == {"queue_full"}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}
    assert not any("x-should-retry" in reply.headers for reply in refused)
    assert client.chat(**slow).status == 200
    llm.close()


def test_a_request_ends_at_its_timeout(client: Client) -> None:
    slow = {"prompt": "x", "ignore_eos": True, "max_tokens": 100, "vllm_xargs": {"seconds": 0.02}}
    reply = client.complete(**slow, timeout=0.1)
    assert (reply.status, reply.error["code"]) == (408, "deadline_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    *chunks, last = client.complete(**slow, timeout=0.2, stream=True).chunks
    assert last["error"]["code"] == "deadline_exceeded"
    assert 0 < len(chunks) < 100
    assert client.complete(prompt="x", timeout=-1).error["param"] == "timeout"
    assert client.complete(prompt="x", timeout=60).status == 200


def test_a_model_that_was_closed_serves_no_more(tmp_path: Path, new_client: NewClient) -> None:
    target, _ = server_models.write_model(tmp_path)
    llm = AsyncLLM(target, max_model_len=128)
    client = new_client(llm)
    assert client.complete(prompt="x").status == 200
    assert client.get("/health").status == 200
    llm.close()
    health = client.get("/health")
    assert (health.status, health.error["code"]) == (503, "unhealthy")
    reply = client.complete(prompt="x")
    assert (reply.status, reply.error["code"]) == (503, "server_shutting_down")
