"""Every byte of an answer is the same with speculation and without, streamed or not."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import server_models
from quiet_drafter import QUIET
from server_client import Body, Client

from forerun import AsyncLLM
from forerun.server.app import make_app
from forerun.server.settings import ServerSettings

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
RESTRICTIONS = ("guided_regex", "guided_choice", "structured_outputs")
METHODS = ("suffix", "eagle3", "hybrid")
NUM_AT_ONCE = 5
# Parts of tokens, whole ones, several, and characters of several tokens.
STOPS = ["see", "me s", "é", "🙂", '"arg', "done.", "</", "x", " Then", "\n\n", "<tool_call>", "}"]
INTEGER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CHOICE = {
    "type": "object",
    "properties": {"b": {"enum": ["x", "y"]}, "a": {"type": "array", "items": {"enum": [1, 7]}}},
    "required": ["b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """A server for each method; "plain" is without one, and "quiet" drafts predictions alone."""
    target, head = server_models.write_model(tmp_path_factory.mktemp("server"))
    configs: dict[str, Any] = {
        "plain": None,
        "quiet": QUIET,
        "suffix": {"method": "suffix"},
        "eagle3": {"model": str(head), "num_speculative_tokens": 4, "adaptive": False},
        "hybrid": {"method": "hybrid", "model": str(head), "adaptive": False},
    }
    found, llms = {}, []
    for name, config in configs.items():
        llm = AsyncLLM(
            target,
            speculative_config=config,
            max_model_len=128,
            max_num_seqs=8,
            check_invariants=True,
            logits_processors=[server_models.FollowsScript],
        )
        llms.append(llm)
        found[name] = Client(make_app(llm, ServerSettings(log_requests=False)))
    yield found
    for client, llm in zip(found.values(), llms, strict=True):
        client.close()
        llm.close()


def random_tools(rng: random.Random) -> Body:
    functions: list[Body] = [
        {"name": "add", "parameters": INTEGER},
        {"name": "d", "description": "x", "parameters": CHOICE},
        {"name": "b"},
    ]
    tools = rng.sample(functions, rng.randint(1, 3))
    strict = [{**each, "strict": True} if rng.random() < 0.2 else each for each in tools]
    body: Body = {"tools": [{"type": "function", "function": each} for each in strict]}
    named = {"type": "function", "function": {"name": tools[0]["name"]}}
    choice = rng.choice([None, "auto", "auto", "none", "required", named])
    if choice is not None:
        body["tool_choice"] = choice
    if rng.random() < 0.3:
        body["parallel_tool_calls"] = rng.random() < 0.5
    return body


def random_restriction(rng: random.Random, path: str) -> Body:
    schema = rng.choice([INTEGER, CHOICE])
    kinds: list[Body] = [
        {"response_format": {"type": "json_object"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema, "strict": True},
            }
        },
        {"guided_regex": r"(ab|x [0-9])+"},
        {"guided_choice": ["x y", "ab", "é🙂"]},
        {"structured_outputs": {"json": schema}},
    ]
    return rng.choice(kinds)


def random_call(rng: random.Random) -> tuple[str, Body]:
    """A request as a client may send it."""
    path = rng.choice([CHAT, CHAT, COMPLETION])
    body: Body = {
        "temperature": rng.choice([0, 0.5, 1.0, 1.3]),
        "seed": rng.getrandbits(32),
        "max_tokens": rng.choice([1, 8, 32, 60, 60]),
        "request_id": "same",
        "stream": rng.random() < 0.6,
    }
    text = rng.choice(["x y", "a b c d", "é🙂", "<think>", "x" * rng.randint(1, 40), "7 7 7 7 7 7"])
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": text}]
        if rng.random() < 0.3:
            body["chat_template_kwargs"] = {"enable_thinking": True}
    else:
        tokens = [rng.randrange(server_models.VOCAB) for _ in range(rng.randint(1, 30))]
        body["prompt"] = rng.choice([text, tokens, [text, "x"], [tokens, [5]]])
        body["echo"] = rng.random() < 0.3
    options: list[Body] = [
        {"stop": rng.sample(STOPS, rng.randint(1, 3))},
        {"stop": rng.choice(STOPS), "include_stop_str_in_output": True},
        {"logprobs": True, "top_logprobs": rng.randint(0, 5)}
        if path == CHAT
        else {"logprobs": rng.randint(0, 5), "echo": False},
        {"n": rng.randint(2, 3), "temperature": 1.0},
        {"ignore_eos": True},
        {"min_tokens": 1},
        {"frequency_penalty": rng.uniform(-1, 1), "repetition_penalty": 1.1},
        {"top_k": 9, "top_p": 0.9},
        {"skip_special_tokens": False},
        {"return_token_ids": True},
        {"logit_bias": {str(rng.randrange(server_models.VOCAB)): 4.0}},
        {"return_tokens_as_token_ids": True},
        {"max_draft_tokens": 2},
        {"include_reasoning": False} if path == CHAT else {},
    ]
    for option in options:
        if rng.random() < 0.15:
            body |= option
    if rng.random() < 0.7:
        body["vllm_xargs"] = {"follow": rng.choice([3.0, 6.0, 20.0])}
    if path == CHAT and rng.random() < 0.5:
        body |= random_tools(rng)
    elif rng.random() < 0.2:
        body |= random_restriction(rng, path)
    if body["stream"]:
        body["stream_options"] = {
            "include_usage": rng.random() < 0.7,
            "continuous_usage_stats": rng.random() < 0.4,
        }
    return path, body


def with_prediction(rng: random.Random, client: Client, call: tuple[str, Body]) -> tuple[str, Body]:
    """A chat whose answer is predicted: as the client's server answers, after an edit or two."""
    path, given = call
    beside = ("n", "logprobs", "tools", "top_logprobs", "tool_choice", "frequency_penalty")
    body = {name: value for name, value in given.items() if name not in beside}
    if rng.random() < 0.8:  # an answer of letters, which are encoded as they were generated
        letters = client.post("/tokenize", {"prompt": "abcdefgxyz ."}).json["tokens"]
        body |= {"allowed_token_ids": letters}
        body |= dict.fromkeys(["response_format", *RESTRICTIONS])
    whole = {**body, "stream": False, "stream_options": None, "speculative": False}
    reply = client.post(path, whole)
    assert reply.status == 200, reply.text
    text = reply.json["choices"][0]["message"]["content"] or "x"
    for _ in range(rng.randint(0, 2)):
        begin = rng.randrange(len(text) + 1)
        text = text[:begin] + rng.choice(["", "x", "é 7"]) + text[begin + rng.randint(0, 6) :]
    content: Any = rng.choice([text, [{"type": "text", "text": text}]])
    return path, {**body, "prediction": {"type": "content", "content": content}}


def normal(text: str) -> str:
    """An answer without what is random and what depends on other requests or on drafts."""
    text = re.sub(r'"(accepted|rejected)_prediction_tokens":\d+', r'"\1":0', text)
    text = re.sub(r"call_[0-9a-f]{24}", "call_ID", text)
    text = re.sub(r'"created":\d+', '"created":0', text)
    return re.sub(r'"cached_tokens":\d+', '"cached_tokens":0', text)


def events_of(text: str) -> dict[int, list[str]]:
    """A stream's events in order, for each choice; -1 has those without one."""
    found: dict[int, list[str]] = {}
    for event in text.split("\n\n"):
        match = re.search(r'"choices":\[{"index":(\d+)', event)
        found.setdefault(int(match[1]) if match else -1, []).append(event)
    return found


def compare(clients: dict[str, Client], calls: list[tuple[str, Body]]) -> None:
    """Every server gives the same answers, to single requests and to several at once."""
    expected = [clients["plain"].post(path, body) for path, body in calls]
    for method in METHODS:
        for begin in range(0, len(calls), NUM_AT_ONCE):
            some = calls[begin : begin + NUM_AT_ONCE]
            replies = clients[method].post_all(some)
            for call, reply, plain in zip(some, replies, expected[begin:], strict=False):
                assert reply.status == plain.status, call
                if not call[1]["stream"] or reply.status != 200:
                    assert normal(reply.text) == normal(plain.text), call
                    continue
                events, plain_events = events_of(normal(reply.text)), events_of(normal(plain.text))
                assert events == plain_events, call


def num_accepted(client: Client) -> int:
    text = client.get("/metrics").text
    match = re.search(r"^vllm:spec_decode_num_accepted_tokens_total{.*} (\S+)$", text, re.MULTILINE)
    assert match is not None
    return int(float(match[1]))


def test_speculation_changes_no_byte(clients: dict[str, Client]) -> None:
    rng = random.Random(7)
    calls = [random_call(rng) for _ in range(60)]
    compare(clients, calls)
    for method in METHODS:
        assert num_accepted(clients[method]) > 100, method


def random_predicted_calls(
    rng: random.Random, client: Client, count: int
) -> list[tuple[str, Body]]:
    calls = [random_call(rng) for _ in range(count)]
    return [with_prediction(rng, client, call) for call in calls if call[0] == CHAT]


def test_predictions_change_no_byte(clients: dict[str, Client]) -> None:
    plain, quiet = clients["plain"], clients["quiet"]
    calls = random_predicted_calls(random.Random(3), plain, 40)
    assert num_accepted(quiet) == 0
    for path, body in calls:
        expected = plain.post(path, {**body, "speculative": False})
        assert expected.status == 200
        for client in (plain, quiet):  # a server without a drafter drafts predictions too
            assert normal(client.post(path, body).text) == normal(expected.text), body
    assert num_accepted(quiet) > 100
    compare(clients, calls)


@pytest.mark.long
def test_speculation_changes_no_byte_of_2000_requests(clients: dict[str, Client]) -> None:
    for seed in range(40):
        rng = random.Random(f"long {seed}")
        compare(clients, [random_call(rng) for _ in range(50)])
        compare(clients, random_predicted_calls(rng, clients["plain"], 20))
