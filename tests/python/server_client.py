"""Calls a server's app without a socket, and puts streams together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from fastapi import FastAPI

_T = TypeVar("_T")
Body = dict[str, Any]


@dataclass
class Reply:
    status: int
    headers: httpx2.Headers
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> Body:
        error: Body = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        return error

    @property
    def chunks(self) -> list[Body]:
        """The events of a stream, which must have ended well."""
        assert self.headers["content-type"].startswith("text/event-stream")
        *events, done, end = self.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        assert all(event.startswith("data: {") for event in events)
        return [json.loads(event.removeprefix("data: ")) for event in events]


class Client:
    """Calls an app; all calls run in one event loop."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()
        # Failures are answered with 500, and raised for the server's log: here the answer counts.
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx2.AsyncClient(transport=transport, base_url="http://test")

    def run(self, work: Awaitable[_T]) -> _T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self._http.aclose())
        self.loop.close()

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        if "json" in options:  # which may hold what httpx2 cannot encode
            options["content"] = json.dumps(options.pop("json")).encode()
            kind = {"content-type": "application/json"}
            options["headers"] = {**kind, **options.pop("headers", {})}
        response = await self._http.request(method, path, **options)
        return Reply(response.status_code, response.headers, response.text)

    def get(self, path: str) -> Reply:
        return self.run(self.call("GET", path))

    def post(self, path: str, body: Any, **options: Any) -> Reply:
        return self.run(self.call("POST", path, json=body, **options))

    def post_all(self, calls: Sequence[tuple[str, Body]]) -> list[Reply]:
        """Posts bodies at the same time."""

        async def run() -> list[Reply]:
            return await asyncio.gather(
                *(self.call("POST", path, json=body) for path, body in calls)
            )

        return self.run(run())

    def chat(self, **body: Any) -> Reply:
        return self.post("/v1/chat/completions", body)

    def complete(self, **body: Any) -> Reply:
        return self.post("/v1/completions", body)

    def leave(self, path: str, body: Body, num_parts: int) -> int:
        """Posts, and disconnects after some parts of the answer; returns the status."""

        async def run() -> int:
            data = json.dumps(body).encode()
            received: list[Body] = [{"type": "http.request", "body": data, "more_body": False}]
            gone = asyncio.Event()
            num_received = status = 0

            async def receive() -> Body:
                if received:
                    return received.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                nonlocal num_received, status
                status = message.get("status", status)
                num_received += message["type"] == "http.response.body"
                if num_received >= num_parts:
                    gone.set()

            if num_parts == 0:
                asyncio.get_running_loop().call_later(0.05, gone.set)
            headers = [(b"content-type", b"application/json"), (b"host", b"test")]
            scope = {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.1",
                "method": "POST",
                "scheme": "http",
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "root_path": "",
                "headers": headers,
                "client": ("test", 1),
                "server": ("test", 80),
            }
            await self.app(scope, receive, send)
            return status

        return self.run(run())


def assembled(chunks: Sequence[Body]) -> dict[int, Body]:
    """The choices that a stream's chunks make, in the form of an answer in one piece."""
    choices: dict[int, Body] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            whole = choices.setdefault(part["index"], {"index": part["index"]})
            assert whole.get("finish_reason") is None, "a chunk after the last one"
            whole["finish_reason"] = part["finish_reason"]
            for name in ("text", "token_ids"):
                if name in part:
                    whole[name] = whole.get(name, part[name][:0]) + part[name]
            _add_logprobs(whole, part["logprobs"])
            if "delta" in part:
                _add_delta(whole.setdefault("message", {}), part["delta"])
    return choices


def _add_logprobs(whole: Body, part: Body | None) -> None:
    if part is None:
        whole.setdefault("logprobs", None)
        return
    found = whole.setdefault("logprobs", {name: values and [] for name, values in part.items()})
    for name, values in part.items():
        if values is not None:
            found[name] = (found[name] or []) + values


def _add_delta(message: Body, delta: Body) -> None:
    for name, value in delta.items():
        if name != "tool_calls":
            assert name != "role" or "role" not in message
            message[name] = message.get(name, "") + value
            continue
        calls = message.setdefault("tool_calls", [])
        for part in value:
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": part["type"], "function": {}})
            function = calls[part["index"]]["function"]
            for key, text in part["function"].items():
                function[key] = function.get(key, "") + text
