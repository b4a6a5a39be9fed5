"""`forerun chat --url` and `forerun bench --url`, with servers that are not Forerun's or fail."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from forerun.tools import cli

Serve = Callable[..., str]


def event(text: str = "", **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, **fields}]}


ANSWER = [event("Hel"), event("lo"), event(finish_reason="stop")]


class Recorder:
    """What a server was asked, and what it answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.models: Any = {"data": [{"id": "first"}, {"id": "second"}]}
        self.status = 200
        self.answer: Any = ANSWER


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def url(recorder: Recorder) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(recorder.status, json.dumps(recorder.models).encode(), "application/json")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            recorder.requests.append((self.path, dict(self.headers), body))
            if isinstance(recorder.answer, bytes):
                self._reply(recorder.status, recorder.answer, "text/plain")
                return
            lines = [f"data: {json.dumps(item)}\r\n\r\n" for item in recorder.answer]
            text = ": a comment\n\nevent: x\n" + "".join(lines) + "data: [DONE]\n\n"
            self._reply(recorder.status, text.encode(), "text/event-stream")

        def _reply(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def chat(monkeypatch: pytest.MonkeyPatch, lines: list[str], *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    return cli.main(["chat", *options])


def test_the_conversation_and_the_parameters_reach_the_server(
    recorder: Recorder,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORERUN_API_KEY", "one two")
    options = ["--url", url, "--top-k", "5", "--logit-bias", "3=-1", "--stop", "x", "--seed", "7"]
    more = ["--bad-word", "no", "--regex", "a*", "--min-tokens", "2", "--ignore-eos"]
    assert chat(monkeypatch, ["hi", "ho"], *options, *more, "--system", "brief") == 0
    shown = capsys.readouterr()
    assert shown.out == "Hello\nHello\n"
    assert shown.err.startswith("Chat with first. ")
    (path, headers, body), (_, _, second) = recorder.requests
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer one"
    assert body == {
        "model": "first",
        "messages": [
            {"role": "system", "content": "brief"},
            {"role": "user", "content": "hi"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 1024,
        "temperature": 0.0,
        "top_k": 5,
        "seed": 7,
        "stop": ["x"],
        "logit_bias": {"3": -1.0},
        "bad_words": ["no"],
        "min_tokens": 2,
        "ignore_eos": True,
        "structured_outputs": {"regex": "a*"},
    }
    assert second["messages"][2:] == [
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "ho"},
    ]


def test_a_model_and_a_key_may_be_named(
    recorder: Recorder, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.models = "unread"
    arguments = ["--url", f"{url}/v1/", "--api-key", "three", "second"]
    assert chat(monkeypatch, ["hi"], *arguments) == 0
    ((path, headers, body),) = recorder.requests
    assert path == "/v1/chat/completions"
    assert (headers["authorization"], body["model"]) == ("Bearer three", "second")


def test_how_an_answer_ended_is_told(
    recorder: Recorder,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 2}}
    recorder.answer = [event("Hel"), event("lo", finish_reason="length"), usage]
    assert chat(monkeypatch, ["hi"], "--url", url, "--stats") == 0
    told = capsys.readouterr().err
    assert "[cut off after 2 tokens]" in told
    assert "[2 tokens, " in told
    assert "target pass" not in told
    recorder.answer = [event(finish_reason="stop")]
    assert chat(monkeypatch, ["hi"], "--url", url) == 0
    assert "[an empty answer]" in capsys.readouterr().err


def test_line_ends_of_unicode_are_part_of_the_text(
    recorder: Recorder,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "one\u2028two\u2029three\x85four"
    line = json.dumps(event(text), ensure_ascii=False)
    recorder.answer = f"data: {line}\r\rdata: [DONE]\r\n\r\n".encode()
    assert chat(monkeypatch, ["hi"], "--url", url) == 0
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (200, [event("Hel"), {"error": {"message": "out of luck"}}], "[error: out of luck]"),
        (200, b"data: {]\n\n", "[error: the stream is not OpenAI's:  {]]"),
        (200, b"data: 5\n\n", "[error: the stream is not OpenAI's:  5]"),
        (401, b'{"error": {"message": "no key"}}', "401: no key]"),
        (400, b'{"error": "odd"}', "400: {'error': 'odd'}]"),
        (500, b"<html>", "500: Internal Server Error]"),
    ],
)
def test_an_error_keeps_the_chat(
    recorder: Recorder,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    answer: Any,
    told: str,
) -> None:
    recorder.status, recorder.answer = status, answer
    assert chat(monkeypatch, ["hi", "ho"], "--url", url, "first") == 0
    assert capsys.readouterr().err.count(told) == 2
    # The question that failed was taken back.
    assert [len(body["messages"]) for _, _, body in recorder.requests] == [1, 1]


@pytest.mark.parametrize("models", [[], {"data": []}, "text", {"data": 3}])
def test_a_server_with_another_api_is_named(
    recorder: Recorder,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    models: Any,
) -> None:
    recorder.models = models
    assert chat(monkeypatch, ["hi"], "--url", url) == 2
    assert "/v1/models: not OpenAI's API" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1/v1/: "),
        (["--url", "localhost"], "url: got localhost; expected http://"),
        (["--url", "http://x", "--num-threads", "2"], "num_threads: got 2; expected nothing"),
        (["--url", "http://x", "--method", "none"], "method: got none; expected nothing"),
        (["--url", "http://x", "--no-adaptive"], "adaptive: got False; expected nothing"),
        (["model", "--api-key", "secret"], "api_key: got a key; expected nothing without --url"),
        ([], "model: got None; expected MODEL, or --url"),
    ],
)
def test_wrong_arguments_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    assert chat(monkeypatch, ["hi"], *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "secret" not in error


def test_bench_needs_forerun(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    assert cli.main(["bench", "--url", url, str(path), "--rounds", "1"]) == 2
    assert "a server of Forerun's is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "http://x", "--methods", "none"], "methods: got none; expected nothing"),
        (["--url", "http://x", "--plot", "a.png"], "plot: got a.png; expected nothing"),
        (["--url", "http://x", "--dtype", "float32"], "dtype: got float32; expected nothing"),
        ([], "prompts: got None; expected a JSONL file"),
    ],
)
def test_wrong_arguments_of_bench_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert cli.main(["bench", "a.jsonl", *arguments]) == 2
    assert told in capsys.readouterr().err
